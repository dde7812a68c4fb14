"""Which files are meant, and where their results go."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

from avtool.batch.staging import is_url, list_urls, url_name
from avtool.errors import InputError, UsageError
from avtool.files import OutputPlan, output_names, printable

VIDEO_SUFFIXES = (
    ".3g2 .3gp .asf .avi .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .rm .ts .vob .webm .wmv"
)


@dataclass(frozen=True)
class Source:
    """One input and its name below the root of all inputs."""

    name: str
    path: Path
    url: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder, "" for the root."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Choice:
    """Which of the files that are found are meant.

    Attributes:
        recursive: also what lies in folders below.
        include, exclude: patterns of names below the root; any of `include` (none: every video), none of `exclude`.
        shard: (i, n): the i-th of n parts, from 1 on; a file belongs to one by the hash of its name.
    """

    recursive: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None

    def takes(self, name: str, named: bool) -> bool:
        """True for a file that is meant; `named`: it was given itself, so its suffix does not matter."""
        if self.include:
            if not any(_fits(name, pattern) for pattern in self.include):
                return False
        elif not named and os.path.splitext(name)[1].lower() not in VIDEO_SUFFIXES.split():
            return False
        if any(_fits(name, pattern) for pattern in self.exclude):
            return False
        return self.shard is None or shard_of(name, self.shard[1]) == self.shard[0]


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name.rpartition("/")[2], pattern)


def shard_of(name: str, count: int) -> int:
    """The part, 1 to `count`, that a name belongs to, on every machine and in every run."""
    return 1 + int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) % count


class Inputs:
    """Folders, files and addresses, under one root that the results mirror.

    Args:
        names: folders, files, addresses.
        choice: which files are meant.
        root: what the names of files are relative to; None: the folder itself if there is one, else the nearest
            folder that holds everything.

    Raises:
        InputError: a name is nothing that exists.
        UsageError: an input lies outside the root.
    """

    def __init__(self, names: Sequence[str], choice: Choice, root: Path | None = None) -> None:
        urls = [url for name in names if is_url(name) for url in list_urls(name)]
        paths = [Path(name) for name in dict.fromkeys(names) if not is_url(name)]
        self._choice = choice
        self._folders = _without_nested([p for p in paths if p.is_dir()])
        files = [p for p in paths if not p.is_dir()]
        self.root = root or _common_root(self._folders, files)
        self._named: dict[str, list[Source]] = {}
        sources = [Source(self._name(path), path) for path in files]
        sources += [Source(name, Path(url.partition("/")[0]) / name, url) for url in urls if (name := url_name(url))]
        for source in sources:
            self._named.setdefault(source.folder, []).append(source)

    def groups(self) -> Iterator[list[Source]]:
        """The files that are meant, those of one folder at a time, in the order of their names.

        Links to files are followed, links to folders are not (they may lead in circles); hidden ones are left out.

        Raises:
            InputError: a folder that was given cannot be listed.
        """
        named = dict(self._named)
        for folder in self._folders:
            for place, names in _walk(folder, self._choice.recursive):
                above = self._name(place)
                found = [Source(f"{above}/{name}" if above else name, place / name) for name in names]
                yield from self._chosen(found, named.pop(above, []))
        for above in sorted(named):
            yield from self._chosen([], named[above])

    def _chosen(self, found: Sequence[Source], named: Sequence[Source]) -> Iterator[list[Source]]:
        unique = {source.name: (source, False) for source in found}
        unique.update({source.name: (source, True) for source in named})
        group = [unique[name][0] for name in sorted(unique) if self._choice.takes(name, unique[name][1])]
        if group:
            yield group

    def _name(self, path: Path) -> str:
        """The name of a file or folder below the root, "" for the root itself."""
        relative = os.path.relpath(os.path.abspath(path), os.path.abspath(self.root))
        if relative == os.pardir or relative.startswith(os.pardir + os.sep):
            raise UsageError(f"{printable(path)} does not lie in {printable(self.root)}", hint="choose another --root")
        return "" if relative == os.curdir else Path(relative).as_posix()


def _walk(folder: Path, recursive: bool) -> Iterator[tuple[Path, list[str]]]:
    def refuse(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            raise InputError(f"cannot list {printable(folder)}", error.strerror or str(error)) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def _without_nested(folders: Sequence[Path]) -> list[Path]:
    """Folders that lie in no other one of them."""
    full = {os.path.abspath(folder): folder for folder in folders}
    return [f for name, f in sorted(full.items()) if not any(name.startswith(o.rstrip(os.sep) + os.sep) for o in full)]


def _common_root(folders: Sequence[Path], files: Sequence[Path]) -> Path:
    if len(folders) == 1 and not files:
        return folders[0]
    above = [os.path.abspath(f) for f in folders] + [os.path.dirname(os.path.abspath(f)) for f in files]
    try:
        return Path(os.path.commonpath(above)) if above else Path()
    except ValueError:  # several drives
        raise UsageError("the inputs have no folder in common", hint="choose one with --root DIR") from None


def name_results(
    groups: Iterable[list[Source]], out: Path, formats: Mapping[str, str], kind: str
) -> Iterator[tuple[Source, OutputPlan]]:
    """Where the results of each input go. Inputs of different folders cannot collide, since their results cannot.

    Raises:
        UsageError: two inputs of one folder would write the same result.
    """
    for folder, parts in groupby(groups, key=lambda group: group[0].folder):
        sources = {source.path: source for group in parts for source in group}
        plans = output_names(list(sources), out / folder, formats, kind=kind)
        for path, plan in plans.items():
            yield sources[path], plan


def check_names(inputs: Inputs, out: Path, formats: Mapping[str, str], kind: str) -> int:
    """Finds collisions before any work, and counts the files.

    Raises:
        InputError: a folder that was given cannot be listed.
        UsageError: two inputs would write the same result.
    """
    return sum(1 for _ in name_results(inputs.groups(), out, formats, kind))
