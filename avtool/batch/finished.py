"""Results that are there already: their fingerprints say whether they are what would be made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from avtool.errors import InputError, OutputError
from avtool.files import OutputPlan, printable, write_atomic
from avtool.timeline import Timeline, from_json


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
