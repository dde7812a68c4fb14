"""Weights on disk: which files are known, where they lie, and that nothing loads whose hash is not known.

A checkpoint from elsewhere may be a program: its bytes are hashed before anything looks into them, unpickled once
without code, and kept as safetensors; only safetensors is read afterwards.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import stat
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avtool.errors import UsageError, WeightsError
from avtool.files import printable, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

HEADER_BYTES = 8 << 20  # far above any network's list of tensors, far below what hurts
ALWAYS_HASHED = 64 << 20  # bytes; hashed at every load (0.2 s), larger files when size or time of change differ
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep their tensors
_UNUSED = "num_batches_tracked"  # batch norm counts its training steps; nothing reads it at inference

log = logging.getLogger("avtool")


@dataclass(frozen=True)
class WeightsFile:
    """One table of the manifest; the comments at its top say what each field means."""

    name: str
    sha256: str
    bytes: int
    kind: str
    licence: str
    commercial: bool | str
    source: str
    urls: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    file: str | None = None

    @property
    def hashes(self) -> tuple[str, ...]:
        """Hashes of all files that hold these weights, the first one preferred."""
        return (self.sha256, *self.also)


@dataclass(frozen=True)
class State:
    """What was loaded, with the hash of the file it came from."""

    tensors: dict[str, Tensor]
    sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Header:
    """The head of a safetensors file: shapes and free-form metadata, read without loading tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Check:
    """Outcome of `verify`: `state` is "ok", "missing" or "damaged", `detail` says more."""

    name: str
    state: str
    path: Path | None
    detail: str


# ---------------------------------------------------------------- where things lie


def embedded_dir() -> Path:
    """Folder of the manifest and of the weights that ship with avtool, in a wheel or a source checkout."""
    package = Path(__file__).parent
    return packed if (packed := package / "_weights").is_dir() else package.parent / "weights"


def cache_dir(weights_dir: Path | None = None) -> Path:
    """Folder of imported weights: `weights_dir`, else AVTOOL_WEIGHTS, else the platform's cache folder."""
    if chosen := weights_dir or os.environ.get("AVTOOL_WEIGHTS"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        base = xdg if os.path.isabs(xdg) else os.path.expanduser("~/.cache")
    return Path(base) / "avtool" / "weights"


def manifest() -> dict[str, WeightsFile]:
    """All weights that avtool knows, by name.

    Raises:
        WeightsError: the manifest is missing or damaged.
    """
    file = embedded_dir() / "manifest.toml"
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        return {name: _entry(name, table) for name, table in tables.items()}
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{printable(file)} cannot be read", _line(error), "install avtool again") from error


def _entry(name: str, table: Mapping[str, Any]) -> WeightsFile:
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    entry = WeightsFile(name=name, **{**table, **lists})
    if not _NAME.fullmatch(name) or not all(re.fullmatch("[0-9a-f]{64}", h) for h in entry.hashes):
        raise ValueError(f"[{name}] has a bad name or sha256")
    return entry


def path(name: str, weights_dir: Path | None = None) -> Path:
    """The safetensors file of known or imported weights.

    A published file that was put by hand where the error message says is imported on the way.

    Raises:
        WeightsError: they are not on this machine; the hint says what to get and where to put it.
        UsageError: nothing of that name is known.
    """
    cache, entry = cache_dir(weights_dir), manifest().get(name)
    if entry and entry.file:
        return _embedded(entry.file)
    for digest in entry.hashes if entry else ():
        file = _cached(cache, digest, name)
        if _sidecar(file).is_file() and file.is_file():
            return file
    if entry and (put := _put_by_hand(cache, entry)):
        return import_weights(put, name, weights_dir=weights_dir)
    if unpinned := _unpinned(cache, name):
        log.warning("weights '%s' were imported with --accept-unpinned; nothing is known about %s", name, unpinned)
        return unpinned
    raise _missing(cache, entry) if entry else _unknown(name)


def _embedded(name: str) -> Path:
    file = embedded_dir() / name
    if not file.is_file():
        what = f"{name} is missing from this installation of avtool"
        raise WeightsError(what, f"it belongs in {printable(file.parent)}", "install avtool again")
    return file


def _cached(cache: Path, digest: str, name: str) -> Path:
    return cache / digest[:12] / f"{name}.safetensors"


def _sidecar(file: Path) -> Path:
    return file.with_suffix(".toml")


def _published_name(entry: WeightsFile) -> str:
    return entry.urls[0].rsplit("/", 1)[-1].split("?")[0] if entry.urls else f"{entry.name}.pt"


def _put_by_hand(cache: Path, entry: WeightsFile) -> Path | None:
    places = (cache / digest[:12] / _published_name(entry) for digest in entry.hashes)
    return next((place for place in places if place.is_file()), None)


def _unpinned(cache: Path, name: str) -> Path | None:
    """The file of that name imported last without a known hash."""
    if not _NAME.fullmatch(name):
        return None
    files = [f for f in cache.glob(f"*/{name}.safetensors") if _sidecar(f).is_file()]
    return max(files, key=lambda f: f.stat().st_mtime_ns, default=None)


def _missing(cache: Path, entry: WeightsFile) -> WeightsError:
    place = cache / entry.sha256[:12] / _published_name(entry)
    file = entry.urls[0] if entry.urls else f"the file described as: {entry.source}"
    digests = " or ".join(entry.hashes)
    return WeightsError(
        f"weights '{entry.name}' are not on this machine",
        "they do not ship with avtool, and nothing is downloaded unasked",
        f"get {file} (sha256 {digests}) and run: avtool weights import {entry.name} FILE"
        f"   or put it at {printable(place)}",
    )


def _unknown(name: str) -> UsageError:
    known = ", ".join(sorted(manifest()))
    return UsageError(f"no weights are called '{printable(name)}'", f"known: {known}", "avtool weights list")


# ---------------------------------------------------------------- reading safetensors


def load(name: str, expect: Mapping[str, Sequence[int]] | None = None, weights_dir: Path | None = None) -> State:
    """`load_safetensors` of known or imported weights, by name."""
    return load_safetensors(path(name, weights_dir), expect)


def load_safetensors(
    file: Path,
    expect: Mapping[str, Sequence[int]] | None = None,
    finite: bool = True,
    accept_unpinned: bool = False,
) -> State:
    """Tensors of a safetensors file whose hash the manifest or a TOML file of the same name beside it gives.

    Args:
        file: the file.
        expect: names and shapes that must be there, no more and no fewer, such as
            `{k: v.shape for k, v in network.state_dict().items()}`.
        finite: refuse NaN and infinity.
        accept_unpinned: load it even if nobody vouches for its hash.

    Returns:
        Tensors on the CPU in the stored dtype, with the hash of the file.

    Raises:
        WeightsError: missing, damaged, of an unknown hash, or not the tensors expected.
    """
    known = _known_hash(file)
    if known is None and not accept_unpinned:
        raise WeightsError(
            f"{printable(file)} is not known to avtool",
            "neither the manifest nor a .toml file beside it gives its sha256",
            "import it with: avtool weights import NAME FILE --accept-unpinned",
        )
    head, size = _look(file)
    digest = _stamped_hash(file, size) or _hash_of(file)
    if known is not None and digest != known:
        raise _damaged(file, _diagnosis(head) or f"its sha256 is {digest}, not {known}")
    header = read_header(file)
    if expect is not None:
        _check_shapes(file, header.shapes, expect)
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(file)
    if finite:
        _check_finite(file, tensors)
    return State(tensors, digest, header.metadata)


def read_header(file: Path) -> Header:
    """Shapes and metadata of a safetensors file, checked against the size of the file, without loading tensors.

    Raises:
        WeightsError: it is not a well-formed safetensors file, or something follows its tensors.
    """
    head, size = _look(file)
    if reason := _diagnosis(head):
        raise _damaged(file, reason)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(HEADER_BYTES, size - 8):
        raise _damaged(file, "it is not a safetensors file, or is cut short")
    try:
        with open(file, "rb") as stream:
            stream.seek(8)
            table = json.loads(stream.read(length), object_pairs_hook=_once)
        metadata = table.pop("__metadata__", {})
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("metadata must be text")
        shapes = _check_table(table, size - 8 - length)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"its header is wrong: {_line(error)}") from error
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


def _check_shapes(file: Path, shapes: Mapping[str, Sequence[int]], expect: Mapping[str, Sequence[int]]) -> None:
    for name in sorted(shapes.keys() | expect.keys()):
        if name not in shapes:
            raise _unfit(file, f"tensor {name} is missing")
        if name not in expect:
            raise _unfit(file, f"tensor {printable(name)} is not part of this network")
        if tuple(shapes[name]) != tuple(expect[name]):
            raise _unfit(
                file, f"tensor {name} has shape {tuple(shapes[name])}, the network wants {tuple(expect[name])}"
            )


def _check_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _unfit(file, f"tensor {printable(name)} holds NaN or infinity")


def _known_hash(file: Path) -> str | None:
    """The sha256 that the manifest or the file's own TOML gives."""
    if file.parent.resolve() == embedded_dir().resolve():
        for entry in manifest().values():
            if entry.file == file.name:
                return entry.sha256
    digest = _read_sidecar(file).get("sha256")
    return digest if isinstance(digest, str) else None


def _read_sidecar(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_sidecar(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{printable(_sidecar(file))} cannot be read", _line(error)) from error


def _stamped_hash(file: Path, size: int) -> str | None:
    """The recorded hash of a large file whose size and time of change are still those recorded."""
    record = _read_sidecar(file) if size > ALWAYS_HASHED else {}
    same = record.get("bytes") == size and record.get("mtime_ns") == file.stat().st_mtime_ns
    return str(record["sha256"]) if same and "sha256" in record else None


def _hash_of(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(file, _line(error)) from error


def _look(file: Path) -> tuple[bytes, int]:
    """First bytes and size of a regular file."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{printable(file)} is not a regular file")
        with open(file, "rb") as stream:
            return stream.read(256), status.st_size
    except OSError as error:
        raise WeightsError(f"{printable(file)} cannot be read", error.strerror or _line(error)) from error


def _diagnosis(head: bytes) -> str:
    """What a file is that is certainly no weights file, or ""."""
    start = head.lstrip().lower()
    if not head:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run git lfs pull where it comes from"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, probably an error or a question saved in place of the file"
    return ""


def _damaged(file: Path, why: str) -> WeightsError:
    return WeightsError(f"{printable(file)} is damaged", why, "remove it and get it again (avtool weights verify)")


def _unfit(file: Path, why: str) -> WeightsError:
    return WeightsError(f"{printable(file)} does not hold the weights expected", why, "avtool weights verify")


# ---------------------------------------------------------------- importing


def import_weights(source: Path, name: str, accept_unpinned: bool = False, weights_dir: Path | None = None) -> Path:
    """Takes a checkpoint (PyTorch state dict or safetensors) into the cache as safetensors.

    Args:
        source: the file as its authors publish it.
        name: under which name it is to be found; for names of the manifest its hash must be the known one.
        accept_unpinned: take it although its hash is not known beforehand; the hash is recorded. Code is still
            never run.
        weights_dir: the cache, see `cache_dir`.

    Returns:
        The safetensors file.

    Raises:
        WeightsError: wrong hash, damaged, holds code or anything but plain finite tensors.
        UsageError: the name cannot be used.
        OutputError: the cache cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{printable(name)}' cannot name weights", "a-z, 0-9, dot, dash and underscore, at most 64")
    entry = manifest().get(name)
    if entry and entry.file:
        raise UsageError(f"weights '{name}' ship with avtool", "there is nothing to import", "choose another name")
    data = _read(source)
    digest = hashlib.sha256(data).hexdigest()
    pinned = entry is not None and digest in entry.hashes
    if not pinned and not accept_unpinned:
        raise _not_pinned(source, digest, len(data), name, entry)
    tensors = _plain_tensors(source, _unpack(source, data), 2 * len(data))
    return _keep(tensors, _cached(cache_dir(weights_dir), digest, name), source.name, digest, pinned)


def _read(source: Path) -> bytes:
    """The whole file: what is hashed is what is unpacked, whatever happens to the file meanwhile."""
    head, _ = _look(source)
    if reason := _diagnosis(head):
        raise WeightsError(f"{printable(source)} is not a weights file", reason)
    try:
        return source.read_bytes()
    except (OSError, MemoryError) as error:
        raise WeightsError(f"{printable(source)} cannot be read", _line(error)) from error


def _not_pinned(source: Path, digest: str, size: int, name: str, entry: WeightsFile | None) -> WeightsError:
    if entry is None:
        what = f"'{name}' is not a name that avtool has a hash for"
        return WeightsError(what, f"sha256 of {printable(source)} is {digest}", "check it, then add --accept-unpinned")
    why = f"its sha256 is {digest}, expected {' or '.join(entry.hashes)}"
    if size < entry.bytes:
        why = f"it has {size} of {entry.bytes} bytes: cut short? {why}"
    where = f"get {entry.urls[0]}" if entry.urls else f"see its source: {entry.source}"
    return WeightsError(f"{printable(source)} is not the file known as '{name}'", why, where)


def _unpack(source: Path, data: bytes) -> object:
    """What a checkpoint holds, unpickled without code."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as load_bytes

    if data[8:9] == b"{":
        read_header(source)
        try:
            return load_bytes(data)
        except SafetensorError as error:
            raise WeightsError(f"{printable(source)} is damaged", _line(error)) from error
    _refuse_packed(source, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of old, on stderr
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents none of the many kinds that damaged or hostile files raise
        code = "weights only" in str(error).lower()
        why = "it holds code or objects, not only tensors" if code else _line(error)
        raise WeightsError(f"{printable(source)} was refused", why, "ask its makers for a safetensors file") from error


def _refuse_packed(source: Path, data: bytes) -> None:
    """A checkpoint is a zip file that stores its parts as they are; one that grows when unpacked is a bomb."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{printable(source)} is damaged", _line(error)) from error
    if unpacked > len(data):
        raise WeightsError(f"{printable(source)} was refused", f"its {len(data)} bytes would unpack to {unpacked}")


def _plain_tensors(source: Path, loaded: object, limit: int) -> dict[str, Tensor]:
    """The tensors of a state dict, unwrapped; anything that is not a plain, whole, finite tensor is refused.

    Args:
        source: for messages.
        loaded: what the file held.
        limit: bytes that all tensors together may take; views of one storage could take any amount.
    """
    import torch

    def refuse(why: str) -> WeightsError:
        return WeightsError(f"{printable(source)} was refused", why, "export a plain state dict of its network")

    state = loaded
    while isinstance(state, dict) and (inner := next((state[k] for k in _WRAPPERS if k in state), None)) is not None:
        state = inner
    if not isinstance(state, dict) or not state:
        raise refuse("it holds no state dict")
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise refuse(f"entry {printable(str(name)[:80])} is {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise refuse(f"tensor {printable(name)} is sparse, quantized, complex or empty of data")
        if not tensor.is_contiguous():
            raise refuse(f"tensor {printable(name)} is an expanded or strided view")
        limit -= tensor.numel() * tensor.element_size()
        if limit < 0:
            raise refuse("its tensors are larger than the file")
        if not name.endswith(_UNUSED):
            tensors[name] = tensor.detach().clone()
    _check_finite(source, tensors)
    return tensors


def _keep(tensors: Mapping[str, Tensor], file: Path, origin: str, origin_sha256: str, pinned: bool) -> Path:
    """Writes the safetensors file, then the record without which it does not count."""
    from safetensors.torch import save

    data = save(dict(tensors), metadata={"origin_sha256": origin_sha256})
    write_atomic(file, data)
    record = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "mtime_ns": file.stat().st_mtime_ns,
        "origin": printable(origin),
        "origin_sha256": origin_sha256,
        "pinned": pinned,
    }
    write_atomic(_sidecar(file), "".join(f"{key} = {json.dumps(value)}\n" for key, value in record.items()))
    return file


# ---------------------------------------------------------------- checking


def verify(weights_dir: Path | None = None) -> list[Check]:
    """Hashes every file of the manifest and the cache again and reads their headers.

    Raises:
        WeightsError: the manifest is missing or damaged.
    """
    cache = cache_dir(weights_dir)
    checks = [_verify_known(entry, cache) for entry in manifest().values()]
    seen = {check.path for check in checks}
    others = (f for f in sorted(cache.glob("*/*.safetensors")) if f not in seen)
    return checks + [_verify_file(file.stem, file) for file in others]


def _verify_known(entry: WeightsFile, cache: Path) -> Check:
    places = [_cached(cache, digest, entry.name) for digest in entry.hashes]
    if entry.file:
        places = [embedded_dir() / entry.file]
    found = next((place for place in places if place.is_file()), None)
    return _verify_file(entry.name, found) if found else Check(entry.name, "missing", None, str(_missing(cache, entry)))


def _verify_file(name: str, file: Path) -> Check:
    try:
        known, digest = _known_hash(file), _hash_of(file)
        if known != digest:
            raise _damaged(file, f"its sha256 is {digest}, not {known}" if known else "there is no record of its hash")
        read_header(file)
    except WeightsError as error:
        return Check(name, "damaged", file, error.why or error.what)
    return Check(name, "ok", file, digest)


def _line(error: BaseException) -> str:
    """The first line of an error's text, safe to show, or its kind."""
    text = str(error).strip().split("\n", 1)[0]
    return printable(text[:200]) if text else type(error).__name__
