"""Features of single clips, gathered into the two files that readers of the AVE data set expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avtool.errors import InputError
from avtool.features.store import Features, load_h5, need_h5py
from avtool.files import atomic_stream, printable, short_stem

KEY = "avadataset"  # what AVE's authors call the one array of a file
SUFFIX = ".features.h5"


def read_names(file: Path) -> list[str]:
    """Names of clips, one a line: AVE's Annotations.txt (class&name&quality&start&end), or a name alone.

    Raises:
        InputError: it cannot be read or holds none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{printable(file)} cannot be read", why) from error
    names = [(line.split("&")[1] if line.count("&") == 4 else line).strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{printable(file)} names no clip")
    return names


def pack(names: Sequence[str], folder: Path) -> tuple[list[Path], int]:
    """Writes `visual_feature.h5` and `audio_feature.h5` with an array "avadataset" (N, 10, ...) float32.

    Row k belongs to the k-th name; a clip that is not there, or lacks the modality, is zero. `names` and `present` in
    the files say which.

    Args:
        names: of the clips, without suffix; one may come twice.
        folder: has the `NAME.features.h5`, and gets the two files.

    Returns:
        The files written, and how many rows have no clip.

    Raises:
        InputError: a clip's file is damaged, two were made by different encoders, or there is none at all.
        OutputError: a file cannot be written.
        UsageError: h5py is not installed.
    """
    need_h5py()
    files = {name: folder / f"{short_stem(name)}{SUFFIX}" for name in dict.fromkeys(names)}
    here = {name: file for name, file in files.items() if file.is_file()}
    if not here:
        raise InputError(f"{printable(folder)} has the features of none of the {len(names)} clips", f"{SUFFIX} files")
    written = [_write(kind, names, here, folder / f"{kind}_feature.h5") for kind in ("visual", "audio")]
    return [file for file in written if file], sum(name not in here for name in names)


def _write(kind: str, names: Sequence[str], here: dict[str, Path], target: Path) -> Path | None:
    """One modality; None if no clip has it."""
    h5py = need_h5py()
    shape, encoder, first = _first(kind, here)
    if first is None:
        return None
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    with atomic_stream(target) as stream, h5py.File(stream, "w") as file:
        array = file.create_dataset(KEY, (len(names), *shape), "f4", chunks=(1, *shape))
        present = np.zeros(len(names), bool)
        for name, source in here.items():
            value, own = _of(load_h5(source), kind)
            if value is None:
                continue
            if own != encoder or value.shape != shape:
                why = f"one is of {own} with shape {value.shape}, one of {encoder} with {shape}"
                raise InputError(f"{printable(source)} and {printable(first)} do not fit together", why)
            for row in rows[name]:
                array[row] = value
                present[row] = True
        file["names"] = np.array([name.encode() for name in names])
        file["present"] = present
        file.attrs["encoder"] = encoder
    return target


def _first(kind: str, here: dict[str, Path]) -> tuple[tuple[int, ...], str, Path | None]:
    for file in here.values():
        value, encoder = _of(load_h5(file), kind)
        if value is not None:
            return value.shape, encoder, file
    return (), "", None


def _of(features: Features, kind: str) -> tuple[Any, str]:
    return getattr(features, kind), getattr(features, f"{kind}_encoder")
