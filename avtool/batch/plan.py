"""Which files of a folder are to be done: walks it, probes what it finds, and leaves out what is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avtool.errors import InputError, OutputError
from avtool.files import OutputPlan, printable, write_atomic
from avtool.formats import render
from avtool.timeline import Timeline, from_json

VIDEO_SUFFIXES = (
    ".3g2 .3gp .asf .avi .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .rm .ts .vob .webm .wmv"
)


@dataclass(frozen=True)
class Job:
    """One file to be done.

    Attributes:
        path: the input.
        name: its path below the folder, as shown and recorded.
        duration: seconds, as far as known before decoding; longer jobs go first.
        fingerprint: what its result will carry, see `pipeline.fingerprint`.
        files: format name -> result.
        attempt: 1 for the first.
    """

    path: Path
    name: str
    duration: float
    fingerprint: str
    files: Mapping[str, Path]
    attempt: int = 1


def find_videos(folder: Path) -> Iterator[Path]:
    """Files below `folder` whose suffix says video, in the order of their names; hidden ones are left out.

    Links to files are followed, links to folders are not (they may lead in circles).

    Raises:
        InputError: not a folder, or it cannot be listed.
    """

    def refuse(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            raise InputError(f"cannot list {printable(folder)}", error.strerror or str(error)) from error

    suffixes = frozenset(VIDEO_SUFFIXES.split())
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(place, name)


def is_finished(one: OutputPlan, fingerprint: str, replace: bool) -> bool:
    """True if the result exists, parses and has this fingerprint; nothing else is trusted.

    A format that is missing beside a finished JSON is made from it. A result of other settings or weights is stale
    and may be replaced.

    Raises:
        OutputError: something that is not a timeline is in the way, and `replace` is false.
    """
    timeline = _existing(one.files["json"], replace)
    if timeline is None or timeline.run.fingerprint != fingerprint:
        return False
    for name, path in one.files.items():
        if not path.is_file():
            write_atomic(path, render(timeline, name, path.parent))
    return True


def _existing(path: Path, replace: bool) -> Timeline | None:
    try:
        return from_json(path.read_bytes(), path.parent)
    except FileNotFoundError:
        return None
    except (OSError, InputError) as error:
        if replace:
            return None
        hint = "--overwrite, or another folder with -o DIR"
        raise OutputError(f"{printable(path)} exists already", "it is not a timeline of avtool", hint) from error


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The order that leaves no straggler for the end; equal ones by name."""
    return sorted(jobs, key=lambda job: (-job.duration, job.name))
