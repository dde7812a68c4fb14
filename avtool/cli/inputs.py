"""From the inputs on the command line to the files that can be worked on, and one exit code for all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from avtool.cli import console
from avtool.errors import AvtoolError, BatchFailures, InputError, OutputError
from avtool.files import OutputPlan, check_writable, output_names, printable
from avtool.settings import STDOUT, OutputSettings

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Failures:
    """Says the error of each input when it happens and goes on with the next."""

    def __init__(self) -> None:
        self._codes: list[int] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """A block about one input; an error ends the block, not the run."""
        try:
            yield
        except AvtoolError as error:
            console.current().error(error)
            self._codes.append(error.exit_code)

    @property
    def exit_code(self) -> int:
        """0, the code that all failures share, or 7."""
        codes = set(self._codes)
        return 0 if not codes else codes.pop() if len(codes) == 1 else BatchFailures.exit_code


def plan(
    inputs: Sequence[str], output: OutputSettings, formats: Collection[str] | Mapping[str, str], kind: str
) -> list[OutputPlan]:
    """Where the results of each input go, decided and tested before any work.

    Raises:
        UsageError: two results would have the same name.
        OutputError: a folder cannot be written to.
    """
    paths = list(dict.fromkeys(Path(name) for name in inputs if not _is_url(name)))
    if output.output == STDOUT:
        return [OutputPlan(path, Path(), {}) for path in paths]
    plans = list(output_names(paths, Path(output.output or "."), formats, output.beside, kind=kind).values())
    for folder in dict.fromkeys(p.folder for p in plans if not output.beside or p.folder.is_dir()):
        check_writable(folder)
    return plans


def admit(
    inputs: Sequence[str],
    plans: Sequence[OutputPlan],
    probe: Callable[[Path], object],
    output: OutputSettings,
    failures: Failures,
) -> list[OutputPlan]:
    """The plans whose input `probe` can read and whose results may be written; the others are said and counted."""
    ready = []
    for name in filter(_is_url, inputs):
        with failures.caught():
            to_path(name)
    for one in plans:
        with failures.caught():
            probe(one.input)
            refuse_existing(one, output)
            ready.append(one)
    return ready


def refuse_existing(one: OutputPlan, output: OutputSettings) -> None:
    """Results are never replaced unasked.

    Raises:
        OutputError: a result exists and --overwrite was not given.
    """
    existing = [path for path in one.files.values() if os.path.lexists(path)]
    if existing and not output.overwrite:
        raise OutputError(
            f"{printable(existing[0])} exists already",
            "results are not replaced unasked",
            "--overwrite, or another folder with -o DIR",
        )


def to_path(name: str) -> Path:
    """The path an argument means.

    Raises:
        InputError: it is an address on a network.
    """
    if _is_url(name):
        why = "avtool reads files and never uses the network for input"
        raise InputError(f"{printable(name)} is an address, not a file", why, "download it first")
    return Path(name)


def _is_url(name: str) -> bool:
    return bool(_URL.match(name)) and not os.path.lexists(name)
