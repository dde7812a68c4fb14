"""Weights on disk: which files are known, where they lie, and that nothing loads whose hash is not known.

A checkpoint from elsewhere may be a program: its bytes are hashed before anything looks into them, unpickled once
without code, and kept as safetensors; only safetensors is read afterwards.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from avtool.errors import AvtoolError, UsageError, WeightsError
from avtool.files import printable, remove, unfinished, write_atomic
from avtool.tensorfiles import (
    HDF5_HINT,
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

    from avtool.download import OnProgress

ALWAYS_HASHED = 64 << 20  # bytes; hashed at every load (0.2 s), larger files when size or time of change differ
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256, _MD5, _PREFIX = re.compile("[0-9a-f]{64}"), re.compile("([0-9a-f]{32})?"), re.compile("[0-9a-f]{0,63}")
_ENCODERS = "avtool.features.encoders"
DOWNLOADS = "downloads"  # folder in the cache of what came as published and is not converted yet

log = logging.getLogger("avtool")


@dataclass(frozen=True)
class WeightsFile:
    """One table of the manifest; the comments at its top say what each field means."""

    name: str
    kind: str
    licence: str
    commercial: bool | str
    source: str
    sha256: str = ""
    bytes: int = 0
    about_bytes: int = 0
    also: tuple[str, ...] = ()
    md5: str = ""
    sha256_prefix: str = ""
    pinned: bool = True
    urls: tuple[str, ...] = ()
    file: str | None = None
    convert: str = ""

    @property
    def hashes(self) -> tuple[str, ...]:
        """Known sha256 of files that hold these weights, the preferred one first."""
        return (self.sha256, *self.also) if self.sha256 else self.also

    @property
    def size(self) -> int:
        """Bytes of the published file, as exactly as they are known; 0: not known."""
        return self.bytes or self.about_bytes

    @property
    def published_name(self) -> str:
        """Name of the file as its authors publish it."""
        name = unquote(self.urls[0].rsplit("/", 1)[-1].split("?")[0]) if self.urls else f"{self.name}.pt"
        return re.sub(r"[^A-Za-z0-9._+=-]+", "-", name)

    @property
    def known(self) -> str:
        """What is known of the file's hash, for people."""
        if self.hashes:
            return f"sha256 {' or '.join(self.hashes)}"
        return f"md5 {self.md5}" if self.md5 else f"sha256 {self.sha256_prefix}..." * bool(self.sha256_prefix)

    def mismatch(self, size: int, sha256: str, md5: str) -> str:
        """Why a file with this size and these hashes is not the one meant, as far as that is known, or ""."""
        if sha256 in self.hashes:
            return ""
        cut = f"it has {size} of {self.bytes} bytes: cut short? " if size < self.bytes else ""
        if self.hashes:
            return f"{cut}its sha256 is {sha256}, expected {' or '.join(self.hashes)}"
        if self.md5 and md5 != self.md5:
            return f"{cut}its md5 is {md5}, expected {self.md5}"
        if not sha256.startswith(self.sha256_prefix):
            return f"{cut}its sha256 is {sha256}, expected {self.sha256_prefix}..."
        return f"it has {size} bytes, expected {self.bytes}" if self.bytes and size != self.bytes else ""


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
    hashes = all(_SHA256.fullmatch(h) for h in entry.hashes) and (entry.sha256 or not entry.file)
    others = _MD5.fullmatch(entry.md5) and _PREFIX.fullmatch(entry.sha256_prefix)
    if not _NAME.fullmatch(name) or not hashes or not others:
        raise ValueError(f"[{name}] has a bad name or sha256")
    if entry.pinned != bool(entry.hashes or entry.md5):
        raise ValueError(f"[{name}] is pinned without a whole hash, or has one and is not pinned")
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
    if found := entry and _pinned(cache, entry):
        return found
    if entry and (put := _put_by_hand(cache, entry)):
        return import_weights(put, name, weights_dir=weights_dir)
    if unpinned := None if entry and entry.pinned else _unpinned(cache, name):
        log.warning("weights '%s' were imported with --accept-unpinned; nothing is known about %s", name, unpinned)
        return unpinned
    raise _missing(cache, entry) if entry else _unknown(name)


def find(entry: WeightsFile, weights_dir: Path | None = None) -> Path | None:
    """The file of known weights if they are here; imports nothing, warns of nothing."""
    cache = cache_dir(weights_dir)
    if entry.file:
        return file if (file := embedded_dir() / entry.file).is_file() else None
    return _pinned(cache, entry) if entry.pinned else _unpinned(cache, entry.name)


def fetched_bytes(entry: WeightsFile, weights_dir: Path | None = None) -> int:
    """Bytes of the published file that unfinished downloads have brought."""
    return unfinished(cache_dir(weights_dir) / DOWNLOADS / entry.published_name)


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


def _pinned(cache: Path, entry: WeightsFile) -> Path | None:
    """The converted form of a file of known hash."""
    for digest in entry.hashes:
        file = _cached(cache, digest, entry.name)
        if file.is_file() and _read_sidecar(file).get("origin_sha256") == digest:
            return file
    if entry.md5:
        for file in sorted(cache.glob(f"*/{entry.name}.safetensors")):
            if _read_sidecar(file).get("origin_md5") == entry.md5:
                return file
    return None


def _by_hand(cache: Path, entry: WeightsFile) -> list[Path]:
    """Where the published file may be put."""
    folders = [digest[:12] for digest in entry.hashes] or [DOWNLOADS]
    return [cache / folder / entry.published_name for folder in folders]


def _put_by_hand(cache: Path, entry: WeightsFile) -> Path | None:
    return next((place for place in _by_hand(cache, entry) if entry.pinned and place.is_file()), None)


def _unpinned(cache: Path, name: str) -> Path | None:
    """The file of that name imported last without a known hash."""
    if not _NAME.fullmatch(name):
        return None
    files = [f for f in cache.glob(f"*/{name}.safetensors") if _sidecar(f).is_file()]
    return max(files, key=lambda f: f.stat().st_mtime_ns, default=None)


def _missing(cache: Path, entry: WeightsFile, offline: bool = False) -> WeightsError:
    """The error that says how to get them; doing what it says is enough."""
    file = entry.urls[0] if entry.urls else f"the file described as: {entry.source}"
    route = f"get {file}{f' ({entry.known})' * bool(entry.known)} and run: avtool weights import {entry.name} FILE"
    if entry.pinned:
        route += f"   or put it at {printable(_by_hand(cache, entry)[0])}"
    else:
        route += " --accept-unpinned"
    why = "they do not ship with avtool, and nothing is downloaded unasked"
    if offline:
        why = "downloading is switched off: --offline or AVTOOL_OFFLINE"
    elif entry.urls:
        route = f"avtool weights fetch {entry.name}   or {route}"
    return WeightsError(f"weights '{entry.name}' are not on this machine", why, route)


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
            never run. A file that contradicts what is known of its name is never taken.
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
    size, digest, md5 = len(data), hashlib.sha256(data).hexdigest(), _md5(data)
    why = entry.mismatch(size, digest, md5) if entry else f"sha256 of {printable(source)} is {digest}"
    pinned = entry is not None and entry.pinned and not why
    if not pinned and (not accept_unpinned or (entry and why)):
        raise _not_pinned(source, why or f"sha256 of {printable(source)} is {digest}", name, entry)
    tensors = plain_tensors(source, unpack(source, data, pinned), 2 * size)
    del data
    origin: dict[str, str | bool] = {
        "origin": printable(source.name),
        "origin_sha256": digest,
        "origin_md5": md5,
        "pinned": pinned,
    }
    return _keep(_converted(source, tensors, entry), _cached(cache_dir(weights_dir), digest, name), origin)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _converted(source: Path, tensors: dict[str, Tensor], entry: WeightsFile | None) -> Mapping[str, Tensor]:
    """The tensors under the names of our network, as `convert` of the manifest (module:function) maps them.

    Raises:
        WeightsError: they are not those of the network.
    """
    if entry is None or not entry.convert:
        return tensors
    module, _, function = entry.convert.partition(":")
    mapping: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    mapping = getattr(importlib.import_module(f"{_ENCODERS}.{module}"), function)
    try:
        mapped = mapping(tensors)
    except AvtoolError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        what = f"{printable(source)} does not hold the weights of '{entry.name}'"
        raise WeightsError(what, first_line(error), f"see its source: {entry.source}") from error
    return plain_tensors(source, mapped, sys.maxsize)


def _read(source: Path) -> bytes:
    """The whole file: what is hashed is what is unpacked, whatever happens to the file meanwhile."""
    head, _ = look(source)
    if reason := diagnosis(head):
        raise WeightsError(f"{printable(source)} is not a weights file", reason)
    try:
        return source.read_bytes()
    except (OSError, MemoryError) as error:
        raise WeightsError(f"{printable(source)} cannot be read", first_line(error)) from error


def _not_pinned(source: Path, why: str, name: str, entry: WeightsFile | None) -> WeightsError:
    if entry is None:
        what = f"'{name}' is not a name that avtool has a hash for"
        return WeightsError(what, why, "check it, then add --accept-unpinned")
    if not entry.pinned and why.startswith("sha256 of"):
        what = f"the whole hash of '{name}' is not known to avtool"
        return WeightsError(what, why, "check it, then add --accept-unpinned")
    where = f"get {entry.urls[0]}" if entry.urls else f"see its source: {entry.source}"
    where += "   or import it under another name"
    return WeightsError(f"{printable(source)} is not the file known as '{name}'", why, where)


def _keep(tensors: Mapping[str, Tensor], file: Path, origin: Mapping[str, str | bool]) -> Path:
    """Writes the safetensors file, then the record without which it does not count."""
    from safetensors.torch import save

    data = save(dict(tensors), metadata={"origin_sha256": str(origin["origin_sha256"])})
    write_atomic(file, data)
    record = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "mtime_ns": file.stat().st_mtime_ns,
        **origin,
    }
    write_atomic(_sidecar(file), "".join(f"{key} = {json.dumps(value)}\n" for key, value in record.items()))
    return file


# ---------------------------------------------------------------- fetching


def fetch(
    name: str,
    *,
    accept_unpinned: bool = False,
    offline: bool = False,
    mirror: str | None = None,
    weights_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Downloads known weights unless they are here, checks and converts them; the only way to a network in avtool.

    An interrupted download goes on where it stopped. Two processes that want the same file take turns.

    Args:
        name: name in the manifest.
        accept_unpinned: take them although their whole hash is not known beforehand; it is recorded.
        offline: open no connection (AVTOOL_OFFLINE=1 does the same).
        mirror: address of a folder that has the published file, tried first; plain http is fine, the hash decides.
        weights_dir: the cache, see `cache_dir`.
        on_progress: called as ("download", bytes here, bytes in all or 0).

    Returns:
        The safetensors file.

    Raises:
        WeightsError: offline, nowhere to be had, or what came is not the file known.
        UsageError: nothing of that name is known, or it cannot be fetched.
        OutputError: the cache cannot be written, or there is not enough space.
    """
    cache, entry = cache_dir(weights_dir), manifest().get(name)
    if entry is None:
        raise _unknown(name)
    if found := _sound(entry, weights_dir):
        return found
    target = cache / DOWNLOADS / entry.published_name
    if put := _put_by_hand(cache, entry):
        return import_weights(put, name, weights_dir=weights_dir)
    if not target.is_file() or not _is_right(entry, target):
        _bring(entry, cache, target, accept_unpinned, offline, mirror, on_progress)
    file = _sound(entry, weights_dir) or _import_once(entry, target, accept_unpinned, weights_dir)
    remove(target)
    return file


def _import_once(entry: WeightsFile, target: Path, accept_unpinned: bool, weights_dir: Path | None) -> Path:
    """Imports a download; another process may do so at the same time and take it away."""
    try:
        return import_weights(target, entry.name, accept_unpinned, weights_dir)
    except WeightsError:
        if not target.exists() and (file := _sound(entry, weights_dir)):
            return file
        raise


def _sound(entry: WeightsFile, weights_dir: Path | None) -> Path | None:
    """The file of known weights if it is here; a damaged copy in the cache is removed."""
    found = find(entry, weights_dir)
    if found and not entry.file and (check := _verify_file(entry.name, found)).state == "damaged":
        log.warning("%s was damaged and is fetched again: %s", printable(found), check.detail)
        remove(found)
        remove(_sidecar(found))
        return None
    return found


def _is_right(entry: WeightsFile, file: Path) -> bool:
    """True for a download that an earlier run has finished and not converted; anything else is removed."""
    data = file.read_bytes()
    right = not entry.mismatch(len(data), hashlib.sha256(data).hexdigest(), _md5(data))
    if not right:
        remove(file)
    return right


def _bring(
    entry: WeightsFile,
    cache: Path,
    target: Path,
    accept_unpinned: bool,
    offline: bool,
    mirror: str | None,
    on_progress: OnProgress | None,
) -> None:
    """Downloads the published file of an entry to `target`."""
    from avtool import download

    if not entry.urls:
        raise UsageError(f"weights '{entry.name}' are not published as a file", f"they are: {entry.source}")
    if offline or download.environment_says_offline():
        raise _missing(cache, entry, offline=True)
    if not entry.pinned and not accept_unpinned:
        what = f"the whole hash of '{entry.name}' is not known to avtool"
        raise WeightsError(what, "what comes could not be checked", "add --accept-unpinned if that is fine")
    if entry.published_name.endswith((".h5", ".hdf5")) and importlib.util.find_spec("h5py") is None:
        raise WeightsError(f"weights '{entry.name}' come as an HDF5 file", "h5py is not installed", HDF5_HINT)
    mirrors = [mirror.rstrip("/") + "/" + entry.urls[0].rsplit("/", 1)[-1].split("?")[0]] if mirror else []
    try:
        download.download(
            [*mirrors, *entry.urls],
            target,
            lambda c: entry.mismatch(c.size, c.sha256, c.md5),
            size=entry.bytes,
            resume=entry.pinned,
            room=entry.size,
            plain=entry.pinned and bool(mirror),
            done=lambda: find(entry, cache) is not None,
            on_progress=on_progress,
        )
    except download.DownloadError as error:
        lines = _missing(cache, entry, offline=True)
        raise WeightsError(f"weights '{entry.name}' could not be downloaded", str(error), lines.hint) from error


# ---------------------------------------------------------------- checking


def verify(weights_dir: Path | None = None, names: Sequence[str] | None = None) -> list[Check]:
    """Hashes every file of the manifest and the cache again and reads their headers.

    Args:
        weights_dir: the cache, see `cache_dir`.
        names: only these; None: all.

    Raises:
        WeightsError: the manifest is missing or damaged.
        UsageError: a name is neither known nor imported.
    """
    cache, known = cache_dir(weights_dir), manifest()
    checks = [_verify_known(entry, cache) for entry in known.values() if names is None or entry.name in names]
    seen = {check.path for check in checks}
    others = [f for f in sorted(cache.glob("*/*.safetensors")) if f not in seen]
    for name in names or ():
        if name not in known and name not in [file.stem for file in others]:
            raise _unknown(name)
    return checks + [_verify_file(f.stem, f) for f in others if names is None or f.stem in names]


def _verify_known(entry: WeightsFile, cache: Path) -> Check:
    found = embedded_dir() / entry.file if entry.file else _pinned(cache, entry)
    if found and found.is_file():
        return _verify_file(entry.name, found)
    return Check(entry.name, "missing", None, _missing(cache, entry).what)


def _verify_file(name: str, file: Path) -> Check:
    try:
        known, digest = _known_hash(file), _hash_of(file)
        if known != digest:
            raise damaged(file, f"its sha256 is {digest}, not {known}" if known else "there is no record of its hash")
        read_header(file)
    except WeightsError as error:
        return Check(name, "damaged", file, error.why or error.what)
    return Check(name, "ok", file, digest)
