"""Weights on disk: which files are known, where they lie, and that nothing loads whose hash is not known.

A checkpoint from elsewhere may be a program: its bytes are hashed before anything looks into them, unpickled once
without code, and kept as safetensors; only safetensors is read afterwards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avtool.errors import UsageError, WeightsError
from avtool.files import printable, write_atomic
from avtool.tensorfiles import (
    check_finite,
    check_shapes,
    damaged,
    diagnosis,
    first_line,
    look,
    plain_tensors,
    read_header,
    unpack,
)

if TYPE_CHECKING:
    from torch import Tensor

ALWAYS_HASHED = 64 << 20  # bytes; hashed at every load (0.2 s), larger files when size or time of change differ
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

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
        raise WeightsError(f"{printable(file)} cannot be read", first_line(error), "install avtool again") from error


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


def locate(name: str, weights_dir: Path | None = None) -> tuple[Path, str]:
    """The safetensors file of known or imported weights and the sha256 without which it will not load; see `path`."""
    file = path(name, weights_dir)
    digest = _known_hash(file)
    if digest is None:
        raise damaged(file, "the record of its hash is empty")
    return file, digest


def load(file: Path, expect: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
    """The tensors alone of `load_safetensors`."""
    return load_safetensors(file, expect).tensors


def licence(name: str) -> str:
    """Licence of known weights.

    Raises:
        UsageError: nothing of that name is known.
    """
    entry = manifest().get(name)
    if entry is None:
        raise _unknown(name)
    return entry.licence


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
    head, size = look(file)
    digest = _stamped_hash(file, size) or _hash_of(file)
    if known is not None and digest != known:
        raise damaged(file, diagnosis(head) or f"its sha256 is {digest}, not {known}")
    header = read_header(file)
    if expect is not None:
        check_shapes(file, header.shapes, expect)
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(file)
    if finite:
        check_finite(file, tensors)
    return State(tensors, digest, header.metadata)


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
        raise WeightsError(f"{printable(_sidecar(file))} cannot be read", first_line(error)) from error


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
        raise damaged(file, first_line(error)) from error


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
    tensors = plain_tensors(source, unpack(source, data), 2 * len(data))
    return _keep(tensors, _cached(cache_dir(weights_dir), digest, name), source.name, digest, pinned)


def _read(source: Path) -> bytes:
    """The whole file: what is hashed is what is unpacked, whatever happens to the file meanwhile."""
    head, _ = look(source)
    if reason := diagnosis(head):
        raise WeightsError(f"{printable(source)} is not a weights file", reason)
    try:
        return source.read_bytes()
    except (OSError, MemoryError) as error:
        raise WeightsError(f"{printable(source)} cannot be read", first_line(error)) from error


def _not_pinned(source: Path, digest: str, size: int, name: str, entry: WeightsFile | None) -> WeightsError:
    if entry is None:
        what = f"'{name}' is not a name that avtool has a hash for"
        return WeightsError(what, f"sha256 of {printable(source)} is {digest}", "check it, then add --accept-unpinned")
    why = f"its sha256 is {digest}, expected {' or '.join(entry.hashes)}"
    if size < entry.bytes:
        why = f"it has {size} of {entry.bytes} bytes: cut short? {why}"
    where = f"get {entry.urls[0]}" if entry.urls else f"see its source: {entry.source}"
    return WeightsError(f"{printable(source)} is not the file known as '{name}'", why, where)


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
            raise damaged(file, f"its sha256 is {digest}, not {known}" if known else "there is no record of its hash")
        read_header(file)
    except WeightsError as error:
        return Check(name, "damaged", file, error.why or error.what)
    return Check(name, "ok", file, digest)
