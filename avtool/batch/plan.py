"""Which files are to be done: finds them, leaves out what is finished, and probes the rest, as a stream."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from avtool.batch.jobs import CANNOT_WRITE, UNREACHABLE, Job, Outcome
from avtool.batch.staging import is_url, list_urls, look_up, url_name
from avtool.errors import AvtoolError, InputError, OutputError, UsageError
from avtool.files import OutputPlan, output_names, printable, write_atomic
from avtool.media.child import DecodeChild
from avtool.media.request import Limits
from avtool.session import fingerprint_of
from avtool.timeline import Timeline, from_json

VIDEO_SUFFIXES = (
    ".3g2 .3gp .asf .avi .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .rm .ts .vob .webm .wmv"
)
PROBERS = 4  # files that are probed at once: what waits for a disk or a network waits beside the others
CHUNK = 64  # files whose probing is handed out together
ALONE_SECONDS = 1.0  # one child probes alone at first: a few files are done before a second one has started


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


# ---------------------------------------------------------------- finding


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


# ---------------------------------------------------------------- what is finished


def finished_timeline(one: OutputPlan, overwrite: bool) -> Timeline | None:
    """The result that is there; None if there is none, or something that may be replaced.

    Raises:
        OutputError: something that is not a timeline is in the way, and `overwrite` is false.
    """
    path = one.files["json"]
    try:
        return from_json(path.read_bytes(), path.parent)
    except FileNotFoundError:
        return None
    except (OSError, InputError) as error:
        if overwrite:
            return None
        hint = "--overwrite, or another folder with -o DIR"
        raise OutputError(f"{printable(path)} exists already", "it is not a timeline of avtool", hint) from error


def fingerprint_found(files: Mapping[str, Path]) -> str:
    """The fingerprint of the result that is there; "" if there is none that parses. Nothing else is trusted."""
    try:
        if "npz" in files:
            from avtool.features.store import read_fingerprint

            return read_fingerprint(files["npz"])
        return from_json(files["json"].read_bytes()).run.fingerprint
    except (OSError, InputError):
        return ""


def complete(one: OutputPlan, timeline: Timeline) -> None:
    """Makes the formats that are missing beside a finished JSON.

    Raises:
        OutputError: one cannot be written.
    """
    from avtool.formats import render

    for name, path in one.files.items():
        if not path.is_file():
            write_atomic(path, render(timeline, name, path.parent))


# ---------------------------------------------------------------- planning


@dataclass
class Planner:
    """Turns inputs into jobs, and says at once what needs none.

    Attributes:
        inputs: what was given.
        out: folder of the results.
        formats: of the results, name -> extension; with "json", or "npz" for features, which says what is finished.
        kind: "events" or "features", the middle part of the names of results.
        identity: what the results depend on besides the inputs; files without any result are probed before it is known.
        limits, audio_track: for probing.
        overwrite: replace what is in the way and is no result.
        failed: what failed before and is not to be tried again: (name, fingerprint) -> how.
        limit: jobs at most; None: no limit.
        look_only: write nothing.
        probers: files probed at once.
    """

    inputs: Inputs
    out: Path
    formats: Mapping[str, str]
    kind: str
    identity: Future[Mapping[str, Any]]
    limits: Limits = field(default_factory=Limits)
    audio_track: int | None = None
    overwrite: bool = False
    failed: Mapping[tuple[str, str], Outcome] = field(default_factory=dict)
    limit: int | None = None
    look_only: bool = False
    probers: int = PROBERS

    def items(self) -> Generator[Job | Outcome]:
        """Jobs, and the outcomes of what is finished, failed before or unreadable.

        Raises:
            InputError: a folder that was given cannot be listed.
            UsageError: two inputs would write the same result.
        """
        named = name_results(self.inputs.groups(), self.out, self.formats, self.kind)
        judged = (self._judge(source, one) for source, one in named)
        with _Probers(self.probers, self.limits, self.audio_track) as probers:
            jobs = 0
            while chunk := list(islice(judged, CHUNK)):
                for judgement, found in probers.probe(chunk):
                    item = self._with_probe(judgement, found)
                    if isinstance(item, Job):
                        if jobs == self.limit:
                            return
                        jobs += 1
                    yield item

    @cached_property
    def _pictured(self) -> frozenset[str]:
        """Formats that need the video besides the timeline."""
        from avtool.formats import PICTURED

        return frozenset(PICTURED)

    @cached_property
    def _failed_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.failed)

    def _fingerprint(self, size: int, mtime_ns: int) -> str:
        """Waits until the identity is known."""
        return fingerprint_of(self.identity.result(), size, mtime_ns)

    def _judge(self, source: Source, one: OutputPlan) -> Job | Outcome:
        """A job that is not probed yet and has no fingerprint, or why there is none."""
        fingerprint = ""
        try:
            size, mtime_ns = _size_and_change(source)
            if one.files[self._main].exists() or source.name in self._failed_names:
                fingerprint = self._fingerprint(size, mtime_ns)
            state = self._state(one, fingerprint)
        except AvtoolError as error:
            kind = UNREACHABLE if isinstance(error, InputError) else CANNOT_WRITE
            return failed_outcome(source.name, fingerprint, kind, error)
        if state == "done":
            return Outcome(source.name, "skipped", fingerprint=fingerprint)
        if (before := self.failed.get((source.name, fingerprint))) is not None:
            return replace(before, state="skipped")
        stale = state == "stale"
        return Job(source.path, source.name, 0.0, "", one.files, source.url, size, mtime_ns, stale)

    @property
    def _main(self) -> str:
        """The format that says what is finished."""
        return "npz" if "npz" in self.formats else "json"

    def _state(self, one: OutputPlan, fingerprint: str) -> str:
        """ "done", "stale" or "new"; only without a result the fingerprint may be empty."""
        if "npz" in one.files:
            found = fingerprint_found(one.files)
            exists = one.files["npz"].exists()
            return "stale" if exists and found != fingerprint else "done" if exists else "new"
        timeline = finished_timeline(one, self.overwrite)
        if timeline is None:
            return "new"
        missing = [name for name, path in one.files.items() if not path.is_file()]
        if timeline.run.fingerprint != fingerprint or not self._pictured.isdisjoint(missing):
            return "stale"
        if not self.look_only:
            complete(one, timeline)
        return "done"

    def _with_probe(self, judgement: Job | Outcome, found: float | AvtoolError) -> Job | Outcome:
        """The judgement with what probing has found: seconds, or why there are none."""
        if isinstance(judgement, Outcome):
            return judgement
        fingerprint = self._fingerprint(judgement.bytes, judgement.mtime_ns)
        if isinstance(found, AvtoolError):
            return failed_outcome(judgement.name, fingerprint, "unreadable", found)
        return replace(judgement, fingerprint=fingerprint, duration=found)


def _size_and_change(source: Source) -> tuple[int, int]:
    if source.url:
        remote = look_up(source.url)
        return remote.bytes, remote.mtime_ns
    try:
        status = os.stat(source.path)
    except OSError as error:
        raise InputError(f"{printable(source.path)} cannot be read", error.strerror or str(error)) from error
    return status.st_size, status.st_mtime_ns


def failed_outcome(name: str, fingerprint: str, kind: str, error: AvtoolError) -> Outcome:
    """The record of a file that failed before it became a job."""
    return Outcome(
        name,
        "failed",
        kind,
        fingerprint=fingerprint,
        exit_code=error.exit_code,
        what=error.what,
        why=error.why,
        hint=error.hint,
    )


class _Probers:
    """Threads with a decode child each: a file that crashes its child is one unreadable file."""

    def __init__(self, count: int, limits: Limits, audio_track: int | None) -> None:
        self._threads = ThreadPoolExecutor(count, "prober")
        self._free: queue.SimpleQueue[DecodeChild] = queue.SimpleQueue()
        self._children: list[DecodeChild] = []
        self._lock = threading.Lock()
        self._begun = 0.0
        self._limits, self._audio_track = limits, audio_track

    def __enter__(self) -> _Probers:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()  # whoever leaves early does not wait for a file that answers slowly
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.close()

    def probe(self, items: Sequence[Job | Outcome]) -> Iterator[tuple[Job | Outcome, float | AvtoolError]]:
        """The items in their order, jobs with their seconds, or why there are none; an address is not opened."""
        return zip(items, self._threads.map(self._one, items), strict=True)

    def _one(self, item: Job | Outcome) -> float | AvtoolError:
        if isinstance(item, Outcome) or item.url:
            return 0.0
        child = self._take()
        try:
            media = child.probe(item.path, self._limits, self._audio_track)
        except AvtoolError as error:
            return error
        finally:
            self._free.put(child)
        return float(media.duration)

    def _take(self) -> DecodeChild:
        """A child that is free, or another one: as many as there are threads, but only one in the first second."""
        with suppress(queue.Empty):
            return self._free.get_nowait()
        with self._lock:
            if not self._children:
                self._begun = time.monotonic()
                return self._another()
        with suppress(queue.Empty):
            return self._free.get(timeout=max(0.0, self._begun + ALONE_SECONDS - time.monotonic()))
        with self._lock:
            return self._another()

    def _another(self) -> DecodeChild:
        self._children.append(DecodeChild())
        return self._children[-1]


class _End:
    """The last thing in a feed."""


class PlanFeed:
    """A plan that runs ahead of the work in a thread of its own, so far and no further.

    Args:
        items: see `Planner.items`.
        size: how many may wait.
    """

    def __init__(self, items: Generator[Job | Outcome], size: int = 256) -> None:
        self._items = items
        self._queue: queue.Queue[Job | Outcome | _End] = queue.Queue(size)
        self._error: BaseException | None = None
        self._given_up = False
        self.ended = False
        self.files = self.jobs = 0  # judged so far, and how many of them are to be done
        self.seconds = 0.0  # of media in those
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, most: int) -> list[Job | Outcome]:
        """What is there, up to so many items; does not wait.

        Raises:
            AvtoolError: planning has failed.
        """
        taken: list[Job | Outcome] = []
        with suppress(queue.Empty):
            while len(taken) < most and not self.ended:
                taken += self._opened(self._queue.get_nowait())
        return taken

    def __iter__(self) -> Iterator[Job | Outcome]:
        """All items, as they come.

        Raises:
            AvtoolError: planning has failed.
        """
        while not self.ended:
            yield from self._opened(self._queue.get())

    def _opened(self, item: Job | Outcome | _End) -> list[Job | Outcome]:
        if not isinstance(item, _End):
            return [item]
        self.ended = True
        if self._error is not None:
            raise self._error
        return []

    def settle(self, seconds: float) -> None:
        """Waits for the whole plan, so that the longest job is known; no longer than this, or than it may run ahead."""
        self._thread.join(seconds)

    def close(self) -> None:
        """Ends the planning."""
        self._given_up = True
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)

    def _work(self) -> None:
        try:
            for item in self._items:
                if self._given_up:
                    self._items.close()
                    return
                self.files += 1
                if isinstance(item, Job):
                    self.jobs += 1
                    self.seconds += item.duration
                self._queue.put(item)
        except BaseException as error:
            self._error = error
        finally:
            self._queue.put(_End())


def check_names(inputs: Inputs, out: Path, formats: Mapping[str, str], kind: str) -> int:
    """Finds collisions before any work, and counts the files.

    Raises:
        InputError: a folder that was given cannot be listed.
        UsageError: two inputs would write the same result.
    """
    return sum(1 for _ in name_results(inputs.groups(), out, formats, kind))
