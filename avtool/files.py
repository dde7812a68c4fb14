"""The only writer of results: names of outputs, collisions, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import count
from pathlib import Path
from typing import BinaryIO

from avtool.errors import OutputError, UsageError

if sys.platform != "win32":  # there two processes may spoil each other's unfinished file, which its hash shows
    import fcntl

STEM_BYTES = 200  # file systems allow 255 bytes a name; the rest is room for ".events.<extension>"
STALE_SECONDS = 3600.0  # an unfinished temporary that nobody has written to for this long belongs to nobody
SPARE_BYTES = 64 << 20  # that stay free on a disk when something large is written to it
PART = ".part"  # what follows the name of a file that grows over several attempts
_POLL_SECONDS = 0.2  # between two looks whether another process is done with a file
SYNC_SECONDS = 1.0  # between two fsyncs of a journal: what is lost with the power is history, no result
_PROBE = b"\0" * 4096  # one block: enough to find a full disk


def _machine() -> str:
    """4 hex digits for the place where a process id means something: a host, or a container on it."""
    place = socket.gethostname()
    with suppress(OSError):
        place += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(place.encode("utf-8", "replace")).hexdigest()[:4]


# .avt-<machine>-<pid>-<number>.avtmp: short, so that only the final name decides whether a name is too long
_TEMPORARY = re.compile(r"\.avt-([0-9a-f]{4})-([0-9a-f]+)-[0-9a-f]+\.avtmp")
_MACHINE = _machine()
_numbers = count()
_live: set[str] = set()  # temporaries of this process that are being written
_swept: set[str] = set()  # folders already searched for what killed processes left

_REASONS: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the device", "free some space, or write elsewhere with -o DIR"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write elsewhere with -o DIR"),
    errno.EACCES: ("permission denied", "choose a folder you may write to with -o DIR"),
    errno.EPERM: ("operation not permitted", "choose a folder you may write to with -o DIR"),
    errno.EROFS: ("the file system is read-only", "choose a folder you may write to with -o DIR"),
    errno.ENAMETOOLONG: ("the name or path is too long", "write to a folder with a shorter path with -o DIR"),
    errno.EEXIST: ("a file is where a folder is needed", "choose another folder with -o DIR"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder with -o DIR"),
    errno.EISDIR: ("a folder of that name is in the way", "rename that folder, or choose another with -o DIR"),
    errno.EFBIG: ("the file is too large for this file system", "write elsewhere with -o DIR"),
    errno.EINVAL: ("the file system does not take this name", "rename the input, or write elsewhere with -o DIR"),
}


@dataclass(frozen=True)
class OutputPlan:
    """Where the results of one input go: format name -> file."""

    input: Path
    folder: Path
    files: Mapping[str, Path]


# ---------------------------------------------------------------- writing


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file: afterwards `path` holds either its old content or `data`, even after a crash or power cut.

    Args:
        path: missing folders are made.
        data: text is written as UTF-8 without changing line ends; a lone surrogate becomes "?".

    Raises:
        OutputError: it cannot be written; what was at `path` is untouched.
    """
    with atomic_stream(path) as file:
        file.write(data.encode("utf-8", "replace") if isinstance(data, str) else data)


@contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends without an exception; promises what `write_atomic` does.

    It can be read and sought in, as HDF5 does.

    The recipe: a temporary in the same folder, fsync, rename, fsync of the folder (restic's local backend). An OSError
    raised inside the block counts as a failure to write, so do nothing but writing in it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path.parent) as file:
            yield file
            file.flush()
            _sync(file.fileno())
            file.close()
            os.replace(file.name, path)
    except OSError as error:
        raise _output_error(path, error) from error
    _sync_folder(path.parent)


class LineFile:
    """A file of lines that only grows, with one writer. A line is there whole or not at all, also on a full disk.

    A line outlives this process at once and a power cut after SYNC_SECONDS.

    Args:
        path: made, with its folder, by the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._synced = time.monotonic()

    def add(self, line: str) -> None:
        """Adds one line.

        Raises:
            OutputError: it cannot be written; the lines before it are untouched.
        """
        data = line.rstrip("\n").encode("utf-8", "replace") + b"\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  closed by close()
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(end)
                raise
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._synced = time.monotonic()
                _sync(self._file.fileno())
        except OSError as error:
            raise _output_error(self.path, error) from error

    def close(self) -> None:
        """Waits until all lines are on the disk.

        Raises:
            OutputError: they are not.
        """
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with file:
                _sync(file.fileno())
        except OSError as error:
            raise _output_error(self.path, error) from error


def claim(path: Path, text: str) -> bool:
    """Makes a small file unless it exists; False if it does. Of several that try, one succeeds, on any file system.

    Raises:
        OutputError: it cannot be made for another reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        with suppress(OSError):
            os.unlink(path)
        raise _output_error(path, error) from error
    return True


def take_away(path: Path, text: str) -> bool:
    """Removes a small file that holds `text`; True for the one of several that did it.

    It is renamed first: a file that another has made at the same place meanwhile is put back.
    """
    aside = path.with_name(f".avt-{process_name()}-{next(_numbers):x}.avtmp")
    try:
        os.rename(path, aside)
        mine = aside.read_text(encoding="utf-8") == text
    except OSError:
        return False
    if not mine:
        with suppress(OSError):
            os.link(aside, path)
    with suppress(OSError):
        os.unlink(aside)
    return mine


def sign_of_life(path: Path) -> int:
    """Makes or touches a file and returns its time of change in nanoseconds, by the clock of the file system.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            os.utime(path)
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise _output_error(path, error) from error


def process_name() -> str:
    """This process among all that share a file system: machine and process id."""
    return f"{_MACHINE}-{os.getpid():x}"


def process_has_ended(name: str) -> bool:
    """True if a `process_name` is one of this machine and no such process runs; False also if that is not known."""
    machine, _, pid = name.partition("-")
    try:
        return machine == _MACHINE and name != process_name() and not _is_running(int(pid, 16))
    except ValueError:
        return False


class ScratchFolder:
    """A folder for files that live shorter than this process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writer(self, path: Path, mtime_ns: int) -> Iterator[BinaryIO]:
        """A new file of the folder, with a given time of change.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with open(path, "wb") as file:
                yield file
            os.utime(path, ns=(mtime_ns, mtime_ns))
        except OSError as error:
            raise _output_error(path, error) from error

    def remove(self, path: Path) -> None:
        """Removes a file, if it is there."""
        with suppress(OSError):
            os.unlink(path)

    def close(self) -> None:
        """Removes the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def scratch_folder(purpose: str) -> ScratchFolder:
    """A new folder among the system's temporary ones; removes those that killed processes have left.

    Raises:
        OutputError: it cannot be made.
    """
    place = Path(tempfile.gettempdir())
    for old in place.glob(f"avtool-{purpose}-*"):
        if process_has_ended(old.name.removeprefix(f"avtool-{purpose}-")):
            shutil.rmtree(old, ignore_errors=True)
    path = place / f"avtool-{purpose}-{process_name()}"
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise _output_error(path, error) from error
    return ScratchFolder(path)


def check_writable(folder: Path) -> None:
    """Finds out before any work whether results can be written to `folder`; makes nothing that stays.

    A folder that does not exist is judged by the nearest one above it that does.

    Raises:
        OutputError: it is a file, or not writable, or the disk is full.
    """
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):
        why = f"{printable(place)} is not a folder"
        raise OutputError(f"cannot write to {printable(folder)}", why, "choose another folder with -o DIR")
    try:
        with _temporary(place) as file:
            file.write(_PROBE)
            file.flush()
            _sync(file.fileno())
    except OSError as error:
        raise _output_error(folder, error) from error


@contextmanager
def _temporary(folder: Path) -> Iterator[BinaryIO]:
    """A new file in `folder` that is gone after the block unless the block renames it."""
    _sweep_once(folder)
    name = str(folder / f".avt-{_MACHINE}-{os.getpid():x}-{next(_numbers):x}.avtmp")
    _live.add(name)
    try:
        with open(name, "x+b") as file:
            yield file
    finally:
        with suppress(OSError):
            os.unlink(name)
        _live.discard(name)


def clean_temporaries() -> None:
    """Removes what this process has not finished writing; takes no lock, so an interrupt handler may call it."""
    mine = f"-{os.getpid():x}-"  # after a fork the set still names the parent's files
    for temporary in list(_live):
        if mine in os.path.basename(temporary):
            with suppress(OSError):
                os.unlink(temporary)


def clean_stale(folder: Path) -> int:
    """Removes temporaries in `folder` that killed processes left behind, and returns how many.

    Raises:
        OSError: the folder cannot be listed.
    """
    removed = 0
    with os.scandir(folder) as entries:
        stale = [entry for entry in entries if _is_stale(entry)]
    for entry in stale:
        with suppress(OSError):
            os.unlink(entry.path)
            removed += 1
    return removed


def _sweep_once(folder: Path) -> None:
    key = os.path.abspath(folder)
    if key not in _swept:
        _swept.add(key)
        with suppress(OSError):  # a folder that may be written to but not listed
            clean_stale(folder)


def _is_stale(entry: os.DirEntry[str]) -> bool:
    match = _TEMPORARY.fullmatch(entry.name)
    if not match or entry.path in _live:
        return False
    machine, pid = match[1], int(match[2], 16)
    if machine == _MACHINE and not _is_running(pid):
        return True
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    if pid == os.getpid():  # the number came round again: what is ours is in _live
        return False
    if os.name != "posix":  # signal 0 ends a process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """True for a process that writes no more: its number is kept until its parent, or its heir, asks how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"Z", b"X")


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # pipes of network file systems
            raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut; where a folder cannot be synced the file system decides."""
    if os.name != "posix":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    why, hint = _REASONS.get(error.errno or 0, (error.strerror or type(error).__name__, "write elsewhere with -o DIR"))
    return OutputError(f"cannot write {printable(path)}", why, hint)


# ---------------------------------------------------------------- growing over several attempts


class Partial:
    """A file next to its place, which it takes by `keep`; one process at a time has it, the next finds what is left.

    Attributes:
        size: bytes that are there.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self.size = stream.seek(0, os.SEEK_END)

    def read(self, chunk: int = 1 << 20) -> Iterator[bytes]:
        """What is there, from the beginning."""
        self._stream.seek(0)
        while data := self._stream.read(chunk):
            yield data

    def write(self, data: bytes) -> None:
        """Adds to the end."""
        self._stream.write(data)
        self.size += len(data)

    def restart(self) -> None:
        """Forgets what is there."""
        self._stream.seek(0)
        self._stream.truncate()
        self.size = 0

    def keep(self) -> None:
        """Moves the file to its place; promises what `write_atomic` does."""
        self._stream.flush()
        _sync(self._stream.fileno())
        if sys.platform == "win32":  # an open file cannot be renamed there
            self._stream.close()
        os.replace(_part(self._path), self._path)
        _sync_folder(self._path.parent)


@contextmanager
def partial(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[Partial]:
    """The unfinished file of `path`, as earlier attempts left it, for this process alone.

    It stays for the next attempt unless it was kept or is empty. An OSError raised inside the block counts as a
    failure to write, so catch those of a network before.

    Args:
        path: where the file will be; missing folders are made.
        on_wait: called once if another process has it, before waiting for that one to end.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_alone(_part(path), on_wait) as stream:
            file = Partial(path, stream)
            try:
                yield file
            finally:
                if file.size == 0 and not stream.closed:
                    with suppress(OSError):
                        os.unlink(_part(path))
    except OSError as error:
        raise _output_error(path, error) from error


def unfinished(path: Path) -> int:
    """Bytes of `path` that earlier attempts have brought; 0 if there are none or it is whole."""
    with suppress(OSError):
        return os.stat(_part(path)).st_size
    return 0


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _open_alone(path: Path, on_wait: Callable[[], None]) -> BinaryIO:
    """Opens a file for reading and writing once no other process has it open so; the lock ends with the file."""
    waited = False
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        try:
            if _lock(stream) and _is_still(stream, path):
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()
        if not waited:
            waited = True
            on_wait()
        time.sleep(_POLL_SECONDS)


def _lock(stream: BinaryIO) -> bool:
    """False while another process has the file."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a file system without locks: better unguarded than not at all
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)
    return True


def _is_still(stream: BinaryIO, path: Path) -> bool:
    """False if the file was renamed or removed by the one who had it before."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def check_space(folder: Path, size: int) -> None:
    """Finds out before any work whether `size` bytes can be written below `folder`, with SPARE_BYTES to spare.

    Raises:
        OutputError: they cannot.
    """
    place = Path(os.path.abspath(folder))
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return  # a file system that does not say; writing will
    if free < size + SPARE_BYTES:
        what = f"not enough space in {printable(folder)}"
        why = f"{size / 1e6:.0f} MB are needed and {SPARE_BYTES / 1e6:.0f} MB to spare, {free / 1e6:.0f} MB are free"
        raise OutputError(what, why, "free some space, or choose another folder")


def remove(path: Path) -> None:
    """Removes a file if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _output_error(path, error) from error


# ---------------------------------------------------------------- names


def output_names(
    inputs: Sequence[Path],
    out_dir: Path,
    formats: Collection[str] | Mapping[str, str],
    beside: bool = False,
    root: Path | None = None,
    kind: str = "events",
    fold_case: bool | None = None,
) -> dict[Path, OutputPlan]:
    """Plans `{stem}.{kind}.{ext}` for every input, before any work.

    Dots inside a stem survive. A stem of more than STEM_BYTES bytes is cut and gets a hash of the whole, the same for
    every format.

    Args:
        inputs: media files; the same path given twice counts once.
        out_dir: where results go.
        formats: format names that are extensions at the same time, or a mapping of names to extensions.
        beside: put results next to each input instead.
        root: mirror the tree below this folder in `out_dir`.
        kind: the middle part of the names.
        fold_case: do names that differ only in case collide? None: asks the file system.

    Returns:
        One plan per input, in order.

    Raises:
        UsageError: two outputs would have the same name (both inputs are named), an output would replace an input, or
            an input lies outside `root`.
    """
    extensions = dict(formats) if isinstance(formats, Mapping) else {name: name for name in formats}
    _refuse_twins(extensions)
    sources = {os.path.abspath(path) for path in inputs}
    plans: dict[Path, OutputPlan] = {}
    taken: dict[str, Path] = {}  # what a file system takes for the name of an output -> its input
    folds: dict[Path, bool] = {}
    for path in dict.fromkeys(inputs):
        folder = _folder_for(path, out_dir, beside, root)
        if folder not in folds:
            folds[folder] = _folds_case(folder) if fold_case is None else fold_case
        stem = short_stem(_stem(path, kind))
        files = {name: folder / f"{stem}.{kind}.{ext}" for name, ext in extensions.items()}
        for file in files.values():
            _refuse_collision(file, path, taken.setdefault(_key(file, folds[folder]), path), sources)
        plans[path] = OutputPlan(path, folder, files)
    return plans


def _stem(path: Path, kind: str) -> str:
    """A result made from a result keeps the name of the video: NAME.events.json gives NAME.events.srt."""
    return path.stem.removesuffix(f".{kind}") if path.suffix == ".json" else path.stem


def short_stem(stem: str) -> str:
    """`stem` itself, or its beginning and 8 hex digits of its hash where it has more than STEM_BYTES bytes."""
    raw = os.fsencode(stem)
    if len(raw) <= STEM_BYTES:
        return stem
    mark = "~" + hashlib.sha256(raw).hexdigest()[:8]
    kept = raw[: STEM_BYTES - len(mark)].decode("utf-8", "ignore" if _is_utf8(raw) else "surrogateescape")
    return kept + mark


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _folder_for(path: Path, out_dir: Path, beside: bool, root: Path | None) -> Path:
    if beside:
        return path.parent
    if root is None:
        return out_dir
    relative = os.path.relpath(os.path.abspath(path.parent), os.path.abspath(root))
    if relative == os.pardir or relative.startswith(os.pardir + os.sep):
        what = f"{printable(path)} does not lie in {printable(root)}"
        raise UsageError(what, hint="give the folder that holds all inputs")
    return out_dir / relative


def _key(file: Path, fold: bool) -> str:
    name = os.path.abspath(file)
    return unicodedata.normalize("NFC", name).casefold() if fold else name


def _refuse_twins(extensions: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, extension in extensions.items():
        if first.setdefault(extension, name) != name:
            raise UsageError(f"formats {first[extension]} and {name} would both write one .{extension} file")


def _refuse_collision(file: Path, path: Path, other: Path, sources: Collection[str]) -> None:
    if other != path:
        raise UsageError(
            f"{printable(other)} and {printable(path)} would both write {printable(file)}",
            "two results cannot have one name",
            "run them with different -o DIR, or use --beside, or rename one",
        )
    if os.path.abspath(file) in sources:
        raise UsageError(
            f"the result {printable(file)} would replace an input",
            "results never overwrite what they are made from",
            "choose another folder with -o DIR",
        )


def _folds_case(folder: Path) -> bool:
    """True where the file system takes Clip and clip for one name, judged by a folder on the way to `folder`."""
    for place in (Path(os.path.abspath(folder)), *Path(os.path.abspath(folder)).parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if other != place and os.path.lexists(place):
            return os.path.exists(other) and os.path.samefile(place, other)
    return False


# ---------------------------------------------------------------- showing names

_JOINERS = {"\u200c", "\u200d"}  # parts of words and emoji, harmless


def printable(text: str | os.PathLike[str]) -> str:
    """A name as it may be shown on a terminal: control, direction and line-break signs and stray bytes are escaped.

    A byte that is not UTF-8 shows as \\xff, other signs as \\n, \\x1b or \\u202e.
    """
    return "".join(map(_escaped, os.fspath(text)))


def _escaped(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: the byte itself
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in _JOINERS:
        return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
    return sign
