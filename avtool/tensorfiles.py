"""Tensor files: safetensors checked before use, and checkpoints of others unpickled without running what they hold."""

from __future__ import annotations

import io
import json
import math
import stat
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avtool.errors import WeightsError
from avtool.files import printable

if TYPE_CHECKING:
    from torch import Tensor

HEADER_BYTES = 8 << 20  # far above any network's list of tensors, far below what hurts
FINITE_PIECE = 1 << 20  # numbers looked at in one go
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep their tensors
_HDF5 = b"\x89HDF\r\n\x1a\n"
HDF5_HINT = "pip install 'avtool[hdf5]'"
_UNUSED = "num_batches_tracked"  # batch norm counts its training steps; nothing reads it at inference


@dataclass(frozen=True)
class Header:
    """The head of a safetensors file: shapes and free-form metadata, read without loading tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


# ---------------------------------------------------------------- any file


def look(file: Path) -> tuple[bytes, int]:
    """First bytes and size of a regular file.

    Raises:
        WeightsError: missing, unreadable, or not a regular file (reading a FIFO would wait for ever).
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{printable(file)} is not a regular file")
        with open(file, "rb") as stream:
            return stream.read(256), status.st_size
    except OSError as error:
        raise WeightsError(f"{printable(file)} cannot be read", error.strerror or first_line(error)) from error


def diagnosis(head: bytes) -> str:
    """What a file is that is certainly no weights file, or ""."""
    start = head.lstrip().lower()
    if not head:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run git lfs pull where it comes from"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, probably an error or a question saved in place of the file"
    return ""


def damaged(file: Path, why: str) -> WeightsError:
    """The error for a file that was a weights file once, or should be one."""
    return WeightsError(f"{printable(file)} is damaged", why, "remove it and get it again (avtool weights verify)")


def _unfit(file: Path, why: str) -> WeightsError:
    return WeightsError(f"{printable(file)} does not hold the weights expected", why, "avtool weights verify")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, safe to show, or its kind."""
    text = str(error).strip().split("\n", 1)[0]
    return printable(text[:200]) if text else type(error).__name__


# ---------------------------------------------------------------- safetensors


def read_header(file: Path) -> Header:
    """Shapes and metadata of a safetensors file, checked against the size of the file, without loading tensors.

    Raises:
        WeightsError: it is not a well-formed safetensors file, or something follows its tensors.
    """
    head, size = look(file)
    if reason := diagnosis(head):
        raise damaged(file, reason)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(HEADER_BYTES, size - 8):
        raise damaged(file, "it is not a safetensors file, or is cut short")
    try:
        with open(file, "rb") as stream:
            stream.seek(8)
            table = json.loads(stream.read(length), object_pairs_hook=_once)
        metadata = table.pop("__metadata__", {})
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("metadata must be text")
        shapes = _check_table(table, size - 8 - length)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(file, f"its header is wrong: {first_line(error)}") from error
    return Header(shapes, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table


def _check_table(table: Mapping[str, Mapping[str, Any]], data_bytes: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name; the tensors must fill the data exactly, without holes, overlaps or anything behind them."""
    position = 0
    for name, record in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = record["data_offsets"]
        shape = record["shape"]
        if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
            raise ValueError(f"bad numbers for {name}")
        if begin != position or end - begin != math.prod(shape) * _ITEM_BYTES[record["dtype"]]:
            raise ValueError(f"{name} does not lie where it should")
        position = end
    if position != data_bytes:
        raise ValueError(f"its tensors take {position} bytes, the file holds {data_bytes}")
    return {name: tuple(record["shape"]) for name, record in table.items()}


def check_shapes(file: Path, shapes: Mapping[str, Sequence[int]], expect: Mapping[str, Sequence[int]]) -> None:
    """Compares names and shapes with those a network expects.

    Raises:
        WeightsError: naming the first tensor that is missing, foreign or of another shape.
    """
    for name in sorted(shapes.keys() | expect.keys()):
        if name not in shapes:
            raise _unfit(file, f"tensor {name} is missing")
        if name not in expect:
            raise _unfit(file, f"tensor {printable(name)} is not part of this network")
        if tuple(shapes[name]) != tuple(expect[name]):
            raise _unfit(
                file, f"tensor {name} has shape {tuple(shapes[name])}, the network wants {tuple(expect[name])}"
            )


def check_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Looks for NaN and infinity.

    Raises:
        WeightsError: naming the first tensor that has one.
    """
    for name, tensor in tensors.items():
        # in pieces: the test needs as much memory again as what it tests
        if tensor.is_floating_point() and not all(t.isfinite().all() for t in tensor.flatten().split(FINITE_PIECE)):
            raise _unfit(file, f"tensor {printable(name)} holds NaN or infinity")


# ---------------------------------------------------------------- checkpoints


def unpack(source: Path, data: bytes, known: bool = False) -> object:
    """What a checkpoint (PyTorch, safetensors or Keras' HDF5) of these bytes holds, unpickled without code.

    Args:
        source: for messages.
        data: the whole file.
        known: its hash is the one expected; else the checksums inside a PyTorch file are all there is, and are checked.

    Raises:
        WeightsError: damaged, or it holds code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as load_bytes

    if data.startswith(_HDF5):
        return _unpack_hdf5(source, data)

    if data[8:9] == b"{":
        read_header(source)
        try:
            return load_bytes(data)
        except SafetensorError as error:
            raise WeightsError(f"{printable(source)} is damaged", first_line(error)) from error
    _refuse_packed(source, data, known)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_arrays()):
            warnings.simplefilter("ignore")  # about formats of old, on stderr
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents none of the many kinds that damaged or hostile files raise
        code = "weights only" in str(error).lower()
        why = "it holds code or objects, not only tensors" if code else first_line(error)
        raise WeightsError(f"{printable(source)} was refused", why, "ask its makers for a safetensors file") from error


def _plain_arrays() -> list[Any]:
    """What an unpickler must know to make NumPy arrays of floating-point numbers, as some checkpoints hold them."""
    rebuild: Any = np.zeros(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8")]
    return [np.ndarray, np.dtype, *kinds, *((rebuild, f"{module}._reconstruct") for module in modules)]


def _refuse_packed(source: Path, data: bytes, known: bool) -> None:
    """A checkpoint is a zip file that stores its parts as they are; one that grows when unpacked is a bomb."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            spoilt = None if known or unpacked > len(data) else archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{printable(source)} is damaged", first_line(error)) from error
    if unpacked > len(data):
        raise WeightsError(f"{printable(source)} was refused", f"its {len(data)} bytes would unpack to {unpacked}")
    if spoilt is not None:
        raise WeightsError(f"{printable(source)} is damaged", f"the checksum of its part {printable(spoilt)} is wrong")


def _unpack_hdf5(source: Path, data: bytes) -> dict[str, Tensor]:
    """Arrays of floating-point numbers by their path in the file, such as "fc1/fc1_W_1:0"; links are not followed."""
    import torch

    try:
        import h5py
    except ImportError as error:
        what = f"{printable(source)} is an HDF5 file"
        raise WeightsError(what, "h5py, which reads them, is not installed", HDF5_HINT) from error
    tensors: dict[str, Tensor] = {}
    room = 2 * len(data)

    def take(name: str, item: Any) -> None:
        nonlocal room
        if not isinstance(item, h5py.Dataset):
            return
        if item.dtype.kind != "f" or item.external or item.is_virtual:
            raise ValueError(f"{printable(name[:80])} is no array of floating-point numbers in this file")
        room -= item.size * item.dtype.itemsize
        if room < 0:
            raise ValueError("its arrays are larger than the file")
        tensors[name] = torch.from_numpy(item[()])

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            file.visititems(take)
    except Exception as error:  # HDF5 raises many kinds for damaged files
        raise WeightsError(f"{printable(source)} was refused", first_line(error)) from error
    return tensors


def _unwrapped(state: object) -> object:
    """What lies under a wrapper's key, or `state` itself."""
    if isinstance(state, dict):
        return next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
    return state


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.isnative


def _is_dense(tensor: Tensor) -> bool:
    """True if every element has a place of its own without gaps: contiguous, or with its axes in another order."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _own(tensor: Tensor) -> Tensor:
    """The tensor, contiguous in memory of its own; copied only if it is not so already."""
    import torch

    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def plain_tensors(source: Path, loaded: object, limit: int) -> dict[str, Tensor]:
    """The tensors of a state dict, unwrapped; anything that is not a plain, whole, finite tensor is refused.

    Args:
        source: for messages.
        loaded: what the file held.
        limit: bytes that all tensors together may take; views of one storage could take any amount.

    Raises:
        WeightsError: as said.
    """
    import torch

    def refuse(why: str) -> WeightsError:
        return WeightsError(f"{printable(source)} was refused", why, "export a plain state dict of its network")

    state = _unwrapped(_unwrapped(loaded))
    if not isinstance(state, dict) or not state:
        raise refuse("it holds no state dict")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = torch.from_numpy(np.array(value)) if _is_array(value) else value
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise refuse(f"entry {printable(str(name)[:80])} is {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise refuse(f"tensor {printable(name)} is sparse, quantized, complex or empty of data")
        if not _is_dense(tensor):
            raise refuse(f"tensor {printable(name)} is an expanded or strided view")
        limit -= tensor.numel() * tensor.element_size()
        if limit < 0:
            raise refuse("its tensors are larger than the file")
        if not name.endswith(_UNUSED):
            tensors[name] = _own(tensor.detach())
    check_finite(source, tensors)
    return tensors
