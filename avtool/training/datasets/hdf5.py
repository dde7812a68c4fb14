"""Arrays in HDF5 files, read whole or a few rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError
from avtool.files import printable

HINT = "pip install 'avtool[hdf5]'"
KEYS = ("avadataset", "dataset", "order")  # what the authors of AVE, CACE-Net and the splits call their one array


def read_rows(file: Path, rows: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
    """Rows of the one array in a file.

    Args:
        file: an HDF5 file with an array called "avadataset", "dataset" or "order", or with one array alone.
        rows: (K,) indices, in any order and repeated if wanted; None: all.

    Returns:
        The rows in the order asked for, as stored.

    Raises:
        InputError: the file is missing, damaged or holds no such array; a row does not exist; h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{printable(file)} is an HDF5 file", "h5py, which reads them, is not installed", HINT
        ) from error
    if not file.is_file():
        raise InputError(f"there is no file {printable(file)}")
    try:
        with h5py.File(file, "r") as source:
            array = _array(source, file)
            if rows is None:
                return np.asarray(array[...])
            wanted = np.asarray(rows, np.int64)
            order, back = np.unique(wanted, return_inverse=True)  # HDF5 reads ascending rows alone
            if len(order) and not 0 <= order[0] <= order[-1] < array.shape[0]:
                raise InputError(f"{printable(file)} has {array.shape[0]} rows", f"row {order[-1]} was asked for")
            return np.asarray(array[order])[back.reshape(wanted.shape)]
    except OSError as error:
        raise InputError(f"{printable(file)} cannot be read as HDF5", str(error).splitlines()[0]) from error


def shape_of(file: Path) -> tuple[int, ...]:
    """Shape of the array that `read_rows` would read; same errors."""
    read_rows(file, [])  # says what is wrong, if anything is
    import h5py

    with h5py.File(file, "r") as source:
        return tuple(_array(source, file).shape)


def _array(source: Any, file: Path) -> Any:
    import h5py

    names = [name for name, item in source.items() if isinstance(item, h5py.Dataset)]
    for key in (*KEYS, *(names if len(names) == 1 else ())):
        if key in names:
            return source[key]
    raise InputError(f"{printable(file)} holds no array of features or labels", f"it has {', '.join(names) or 'none'}")
