"""Brings files from object stores and web servers to this machine, one at a time, before FFmpeg sees them."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from avtool.batch.jobs import Job
from avtool.errors import InputError, OutputError, UsageError
from avtool.files import ScratchFolder, printable, scratch_folder, short_stem

CHUNK_BYTES = 4 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# what file systems call the time of change, the best first
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "timeModified", "Last-Modified", "created")
_MARKS = ("ETag", "etag", "md5Hash", "checksum", "sha256")


class Unreachable(InputError):
    """A file that is not there or does not answer now; trying again may help."""


@dataclass(frozen=True)
class Remote:
    """A file that is not on a file system of this machine.

    Attributes:
        url: its address.
        bytes: its size.
        mtime_ns: when it was changed, or a number that stands for its contents.
    """

    url: str
    bytes: int
    mtime_ns: int


def is_url(name: str) -> bool:
    """True for an address such as s3://bucket/a.mp4, unless a file of that very name exists."""
    return bool(_URL.match(name)) and not os.path.lexists(name)


def url_name(url: str) -> str:
    """The name an address has below the root of the inputs: host or bucket, then the path."""
    path = re.sub(r"[?#].*", "", url.partition("://")[2]) if url.startswith("http") else url.partition("://")[2]
    parts = [part for part in PurePosixPath("/" + path).parts[1:] if part not in ("", ".", "..")]
    return "/".join(parts)


def list_urls(url: str) -> list[str]:
    """The files below an address that is a folder, else the address itself.

    Raises:
        UsageError: fsspec, or the package for this kind of address, is missing.
        Unreachable: it cannot be listed.
    """
    if url.startswith(("http://", "https://")):
        return [url]
    system, path = _open_system(url)
    with _as_unreachable(url):
        if not system.isdir(path):
            return [url]
        return [str(system.unstrip_protocol(found)) for found in sorted(system.find(path))]


def look_up(url: str) -> Remote:
    """Size and time of change of a remote file.

    Raises:
        UsageError: fsspec, or the package for this kind of address, is missing.
        Unreachable: it is not there or does not answer.
    """
    system, path = _open_system(url)
    with _as_unreachable(url):
        about: Mapping[str, Any] = system.info(path)
        return Remote(url, int(about.get("size") or 0), _changed(about))


def _changed(about: Mapping[str, Any]) -> int:
    """Nanoseconds of the time of change; without one, a number made of the checksum that the store gives."""
    for name in _TIMES:
        value = about.get(name)
        if isinstance(value, datetime):
            return int(value.timestamp()) * 10**9
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value) * 10**9
        if isinstance(value, str) and value:
            return _number_of(value)
    return next((_number_of(str(about[name])) for name in _MARKS if about.get(name)), 0)


def _number_of(text: str) -> int:
    """A whole second in the years 2001 to 2035, so that any file system can hold it as a time."""
    return (10**9 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) // 4) * 10**9


class Staging:
    """Local copies of remote files, each for the time of its job.

    Args:
        limit: bytes; a larger file is refused.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._folder: ScratchFolder | None = None
        self._copies: dict[str, _Copy] = {}
        self._lock = threading.Lock()

    def begin(self, job: Job) -> None:
        """Starts to fetch; returns at once."""
        with self._lock:
            if job.url not in self._copies:
                self._folder = self._folder or scratch_folder("stage")
                self._copies[job.url] = _Copy(job, self._folder, self._limit)

    def drop(self, job: Job) -> None:
        """Gives a copy up."""
        with self._lock:
            copy = self._copies.pop(job.url, None)
        if copy is not None:
            copy.remove()

    @contextmanager
    def file_of(self, job: Job) -> Iterator[Path]:
        """The local file of a job; a copy is removed after the block.

        Raises:
            InputError: it is larger than allowed.
            Unreachable: it cannot be fetched.
        """
        if not job.url:
            yield job.path
            return
        self.begin(job)
        try:
            yield self._copies[job.url].path()
        finally:
            self.drop(job)


class _Copy:
    """One file on its way."""

    def __init__(self, job: Job, folder: ScratchFolder, limit: int) -> None:
        self._job, self._folder, self._limit = job, folder, limit
        suffix = PurePosixPath(url_name(job.url)).suffix
        stem = short_stem(hashlib.sha256(job.url.encode("utf-8", "replace")).hexdigest()[:16])
        self._path = folder.path / f"{stem}{suffix}"
        self._given_up = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def path(self) -> Path:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._path

    def remove(self) -> None:
        self._given_up = True
        self._thread.join()
        self._folder.remove(self._path)

    def _work(self) -> None:
        try:
            self._fetch()
        except BaseException as error:
            self._error = error

    def _fetch(self) -> None:
        job = self._job
        if job.bytes > self._limit:
            raise self._too_large(job.bytes)
        system, path = _open_system(job.url)
        with _as_unreachable(job.url):
            source = system.open(path, "rb")
        try:
            with source, self._folder.writer(self._path, job.mtime_ns) as target:
                done = 0
                while not self._given_up and (data := _read(source, job.url)):
                    done += len(data)
                    if done > self._limit:
                        raise self._too_large(done)
                    target.write(data)
        except (InputError, OutputError):
            raise
        except Exception as error:
            raise _unreachable(job.url, error) from error

    def _too_large(self, size: int) -> InputError:
        what = f"{printable(self._job.url)} is too large to be fetched"
        return InputError(what, f"more than {size - 1} bytes; {self._limit} are allowed", "--stage-gb raises the limit")


def _read(source: Any, url: str) -> bytes:
    with _as_unreachable(url):
        data: bytes = source.read(CHUNK_BYTES)
        return data


def _open_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise UsageError("addresses need fsspec", str(error), "pip install 'avtool[remote]'") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UsageError(f"{printable(url)} needs another package", str(error)) from None
    except Exception as error:
        raise _unreachable(url, error) from error
    return system, str(path)


@contextmanager
def _as_unreachable(url: str) -> Iterator[None]:
    """Stores raise errors of many kinds; all of them mean the same here."""
    try:
        yield
    except Exception as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> Unreachable:
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return Unreachable(f"{printable(url)} cannot be fetched", why, "look at the address, the network, the credentials")
