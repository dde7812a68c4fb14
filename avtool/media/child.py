"""Decodes in a child process, so that a crash, a hang or a memory bomb inside FFmpeg is an error and nothing more.

The parent sends requests as lines of JSON and gets messages back through a pipe. Pictures go through memory that both
share: a ring of places behind a counter of the pictures that the parent has taken out. The child runs
`python -m avtool.media.child`, imports neither torch nor anything of the upper layers, and ends when its parent's pipe
closes.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

import avtool.errors
from avtool import interrupts
from avtool.errors import AvtoolError, InputError
from avtool.files import printable
from avtool.media.request import DecodeReport, DecodeRequest, Item, Limits, Picture, PictureSpec, Progress, Sound
from avtool.timegrid import Grid
from avtool.timeline import AudioInfo, MediaInfo, Notice, VideoInfo

STALL_SECONDS = 30.0  # without a sign of life while the parent waits: the child hangs
MEMORY_BYTES = 3 << 30  # address space of the child; one 8K picture and its references need a third
RING_BYTES = 64 << 20  # shared memory for pictures under way
RING_START = 4096  # where the places begin; before them is the counter
SLOTS = 8  # places of the ring at most
PIPE_BYTES = 1 << 20  # 8 s of sound at 32 kHz
SIGN_OF_LIFE = 0.25  # seconds between two progress messages
FULL_SECONDS = 0.003  # between two looks at a ring that is full
READ_BYTES = 262_144  # at once
BATCH_BYTES, BATCH_PIECES, BATCH_SECONDS = 262_144, 256, 0.05  # messages are held back so far, or for so long

# kind, bytes of JSON, bytes of payload; row or first sample, seconds, height or samples, width, place of the pixels
HEADER = struct.Struct("<c3xIQqdIIq")
SAME, INSIDE = -1, -2  # places: the pixels are those of the picture before, or the payload; else an offset in the ring
TAKEN, PICTURE, SOUND, PROGRESS, REPORT, PROBED, ERROR = b"T", b"P", b"S", b"G", b"R", b"M", b"E"

_ROOT = str(Path(avtool.errors.__file__).parent.parent)


def decode_in_child(
    path: str | os.PathLike[str], request: DecodeRequest, on_progress: Progress | None = None
) -> Iterator[Item]:
    """`decode` in a child process of its own; see `DecodeChild.decode`."""
    with DecodeChild() as child:
        yield from child.decode(path, request, on_progress)


class DecodeChild:
    """A decoding process that serves one file after another.

    `start` returns at once, so call it before heavy imports. A child that dies is replaced at the next request.
    """

    def __init__(self, *, stall_seconds: float = STALL_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._stall = stall_seconds
        self._memory = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._ring: mmap.mmap | None = None
        self._taken: npt.NDArray[np.int64] | None = None  # (1,) pictures taken out of the ring
        self._reader: _Reader | None = None
        self._end: weakref.finalize[Any, DecodeChild] | None = None

    def __enter__(self) -> DecodeChild:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the process unless it runs; does not wait for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        shared = _shared_memory()
        try:
            with interrupts.Postponed():  # an interrupt in the middle would not know whom to end
                self._process = _spawn(["-1" if shared is None else str(shared), str(self._stall), str(self._memory)])
                self._end = weakref.finalize(self, _kill, self._process)
            self._ring = None if shared is None else mmap.mmap(shared, RING_BYTES)
            self._taken = None if self._ring is None else np.ndarray(1, np.int64, self._ring)
        finally:
            if shared is not None:
                os.close(shared)
        assert self._process.stdout is not None
        _widen(self._process.stdout)
        self._reader = _Reader(self._process.stdout.fileno(), self._stall)

    def close(self) -> None:
        """Ends the process."""
        if self._end is not None:
            self._end()
        self._process = self._ring = self._taken = self._reader = self._end = None

    def kill(self) -> None:
        """Ends the process without waiting for it; takes no lock, so an interrupt handler may call it."""
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.kill()

    def probe(
        self, path: str | os.PathLike[str], limits: Limits | None = None, audio_track: int | None = None
    ) -> MediaInfo:
        """`avtool.media.probe.probe` in the child.

        Raises:
            InputError: also when the child crashed, hung or ran out of memory.
        """
        asked = {"do": "probe", "limits": asdict(limits or Limits()), "audio_track": audio_track}
        for message in self._ask(path, asked):
            if message.kind == PROBED:
                return _media_from(message.meta, path)
        raise AssertionError("the child ended a request without an answer")

    def decode(
        self,
        path: str | os.PathLike[str],
        request: DecodeRequest,
        on_progress: Progress | None = None,
        *,
        lend: bool = False,
    ) -> Iterator[Item]:
        """`avtool.media.decoding.decode` in the child: the same items.

        Args:
            path, request, on_progress: as there.
            lend: pixels are not copied out of the shared memory, which takes a millisecond for a 1080p picture: they
                are those of the picture until the next item is asked for, and anything after. Rows that show one
                picture get the same array, so whoever keeps what was made of it needs it once.

        Raises:
            InputError: also when the child crashed, hung or ran out of memory.
            UsageError: there is no such audio track.
        """
        pixels: npt.NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
        for message in self._ask(path, {"do": "decode", **_request_to(request)}):
            if message.kind == PICTURE:
                pixels, in_ring = self._pixels(message, pixels)
                pixels = pixels.copy() if in_ring and not lend else pixels
                pixels.setflags(write=False)
                if in_ring and not lend:
                    self._give_back()
                yield Picture(message.number, message.time, pixels)
                if in_ring and lend:
                    self._give_back()
            elif message.kind == SOUND:
                yield Sound(message.number, _samples(message))
            elif message.kind == PROGRESS and on_progress is not None:
                on_progress(message.meta["stage"], message.meta["done"], message.meta["total"])
            elif message.kind == REPORT:
                yield _report_from(message.meta, path)

    def _ask(self, path: str | os.PathLike[str], asked: Mapping[str, Any]) -> Iterator[_Message]:
        """Sends a request and yields the answers up to the last; a request that is left early ends the child."""
        whole = False
        try:
            name = base64.b64encode(os.fsencode(os.path.abspath(os.fspath(path)))).decode()
            self._hand_over(json.dumps({**asked, "path": name}).encode() + b"\n")
            while not whole:
                message = self._receive()
                whole = message.kind in (REPORT, PROBED, ERROR)
                if message.kind == ERROR:
                    raise _error_from(message.meta)
                yield message
        except _Gone as gone:
            raise self._explain(path, gone) from None
        finally:
            if not whole:
                self.close()

    def _hand_over(self, line: bytes) -> None:
        """Returns when a child has taken the request; one that died before it could is replaced, once.

        A death between two requests need not show before: the kernel may still be taking threads of the child down.
        """
        for replaceable in (True, False):
            self.start()
            try:
                self._send(line)
                self._receive()
                return
            except _Gone as gone:
                if gone.hung or not replaceable:
                    raise
            self.close()

    def _pixels(self, message: _Message, last: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], bool]:
        """The pixels of a picture message, and whether they lie in the ring: then they are to be given back."""
        if message.place == SAME:
            return last, False
        shape = (message.height, message.width, 3)
        if message.place == INSIDE:
            return np.frombuffer(message.payload, np.uint8).reshape(shape), False
        assert self._ring is not None
        return np.ndarray(shape, np.uint8, self._ring, message.place), True

    def _give_back(self) -> None:
        """The child may write to the oldest place of the ring that holds a picture."""
        assert self._taken is not None
        self._taken += 1

    def _send(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except OSError:
            raise _Gone from None

    def _receive(self) -> _Message:
        assert self._reader is not None
        kind, size, rest, number, seconds, height, width, place = HEADER.unpack(self._reader.take(HEADER.size))
        meta = json.loads(self._reader.take(size)) if size else {}
        return _Message(kind, number, seconds, height, width, place, meta, self._reader.take(rest))

    def _explain(self, path: str | os.PathLike[str], gone: _Gone) -> InputError:
        assert self._process is not None
        process = self._process
        if gone.hung:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        code = process.returncode
        if gone.hung or code == -signal.SIGALRM:
            why = f"the decoder did nothing for {self._stall:.0f} s and was stopped"
        elif code == -signal.SIGKILL:
            why = "the decoder was killed, most likely because memory ran out"
        elif code is not None and code < 0:
            why = f"the decoder crashed ({signal.Signals(-code).name})"
        else:
            why = f"the decoder ended without an answer (status {code})"
        return InputError(f"{printable(path)} cannot be decoded", why, "re-encode the file, for example with ffmpeg")


class _Message(NamedTuple):
    """What the child says: a kind, numbers for pictures and sound, facts for the rest."""

    kind: bytes
    number: int  # row, or first sample
    time: float  # seconds
    height: int  # pixels, or samples
    width: int
    place: int  # of the pixels
    meta: dict[str, Any]
    payload: bytearray


class _Reader:
    """Reads a pipe in large pieces, and waits no longer than `stall` seconds for each."""

    def __init__(self, fd: int, stall: float) -> None:
        self._fd, self._stall = fd, stall
        self._store = memoryview(bytearray(READ_BYTES))
        self._start = self._end = 0  # of what was read and not taken yet
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def take(self, size: int) -> bytearray:
        """The next `size` bytes.

        Raises:
            _Gone: the pipe is closed, or nothing comes.
        """
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            if self._start < self._end:
                count = min(size - at, self._end - self._start)
                view[at : at + count] = self._store[self._start : self._start + count]
                self._start += count
            else:
                count = self._read(view[at:])
            at += count
        return data

    def _read(self, into: memoryview) -> int:
        """Fills `into` as far as it can, and the store with what comes after it; how much of `into` was filled."""
        if not self._poll.poll(self._stall * 1000):
            raise _Gone(hung=True)
        count = os.readv(self._fd, [into, self._store])
        if not count:
            raise _Gone
        self._start, self._end = 0, max(0, count - len(into))
        return min(count, len(into))


class _Gone(Exception):
    """The child hangs or has ended."""

    def __init__(self, hung: bool = False) -> None:
        self.hung = hung


def _shared_memory() -> int | None:
    """A descriptor of nameless shared memory, so that nothing is left behind however the processes end."""
    if sys.platform != "linux":
        return None  # pictures go through the pipe
    try:
        fd = os.memfd_create("avtool")
        os.ftruncate(fd, RING_BYTES)
    except OSError:
        return None
    return fd


def _spawn(arguments: list[str]) -> subprocess.Popen[bytes]:
    shared = int(arguments[0])
    return subprocess.Popen(
        # -P: the working folder may hold a file called numpy.py
        [sys.executable, "-P", "-m", "avtool.media.child", *arguments],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("AVTOOL_DEBUG") else subprocess.DEVNULL,
        env=_environment(),
        pass_fds=() if shared < 0 else (shared,),
        process_group=0,  # Ctrl-C is the parent's to handle
    )


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (_ROOT, os.environ.get("PYTHONPATH")) if p)
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one, "MALLOC_ARENA_MAX": "2", "PYTHONPATH": path}


def _widen(pipe: Any) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)


# ---------------------------------------------------------------- records to JSON and back


def _request_to(request: DecodeRequest) -> dict[str, Any]:
    """Fractions as text, the rest as it is."""
    spec = None if request.pictures is None else asdict(request.pictures)
    return {
        "pictures": spec,
        "sample_rate": request.sample_rate,
        "grid": [str(request.grid.segment), str(request.grid.stride)],
        "audio_track": request.audio_track,
        "start": None if request.start is None else str(Fraction(request.start)),
        "end": None if request.end is None else str(Fraction(request.end)),
        "limits": asdict(request.limits),
    }


def _request_from(asked: Mapping[str, Any]) -> DecodeRequest:
    segment, stride = asked["grid"]
    return DecodeRequest(
        None if asked["pictures"] is None else PictureSpec(**asked["pictures"]),
        asked["sample_rate"],
        Grid(Fraction(segment), Fraction(stride)),
        asked["audio_track"],
        None if asked["start"] is None else Fraction(asked["start"]),
        None if asked["end"] is None else Fraction(asked["end"]),
        Limits(**asked["limits"]),
    )


def _media_to(media: MediaInfo) -> dict[str, Any]:
    return {**asdict(media), "path": ""}  # a path need not be text


def _media_from(meta: Mapping[str, Any], path: str | os.PathLike[str]) -> MediaInfo:
    parts = {
        "path": os.path.abspath(os.fspath(path)),
        "video": None if meta["video"] is None else VideoInfo(**meta["video"]),
        "audio": None if meta["audio"] is None else AudioInfo(**meta["audio"]),
    }
    return MediaInfo(**{**meta, **parts})


def _report_from(meta: Mapping[str, Any], path: str | os.PathLike[str]) -> DecodeReport:
    notices = tuple(Notice(**n) for n in meta["notices"])
    return DecodeReport(**{**meta, "media": _media_from(meta["media"], path), "notices": notices})


def _samples(message: _Message) -> npt.NDArray[np.float32]:
    return np.frombuffer(message.payload, np.float32) if message.payload else np.zeros(message.height, np.float32)


def _error_from(meta: Mapping[str, Any]) -> Exception:
    kind = getattr(avtool.errors, meta["type"], None)
    if isinstance(kind, type) and issubclass(kind, AvtoolError):
        return kind(meta["what"], meta["why"], meta["hint"])
    return RuntimeError(f"the decoding process failed:\n{meta['what']}")


# ---------------------------------------------------------------- inside the child


class Server:
    """The child's side: answers requests until the parent's pipe closes."""

    def __init__(self, stdout: int, shared: int, stall: float) -> None:
        self._out = stdout
        self._limit = 2 * stall  # the parent stops the child earlier, if there is a parent
        self._memory = mmap.mmap(shared, RING_BYTES) if shared >= 0 else None
        self._taken = np.zeros(1, np.int64) if self._memory is None else np.ndarray(1, np.int64, self._memory)
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._put = 0  # pictures put into the ring
        self._place_bytes, self._places = 0, SLOTS
        self._given: tuple[npt.NDArray[np.uint8], int] | None = None  # the last pixels and where they lie
        self._sent: npt.NDArray[np.uint8] | None = None  # the pixels of the last picture message
        self._last_sign = 0.0
        self._batch: list[bytes | memoryview] = []  # messages not sent yet
        self._batch_bytes, self._batch_since = 0, 0.0

    def listen(self) -> None:
        """Starts to take requests, and to watch for the end of the parent."""
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> NoReturn:
        """Serves for ever; the listening thread ends the process."""
        while True:
            self._patience(0)
            asked = self._requests.get()
            self._patience(self._limit)
            self._send(TAKEN, {})
            self._answer(asked)

    def _listen(self) -> NoReturn:
        """Takes requests; the end of the pipe is the end of the process, whatever it is doing."""
        rest = b""
        while data := os.read(0, 65_536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._requests.put(json.loads(line))
        os._exit(0)

    def _answer(self, asked: dict[str, Any]) -> None:
        path = os.fsdecode(base64.b64decode(asked["path"]))
        try:
            if asked["do"] == "probe":
                from avtool.media.probe import probe

                media = probe(path, Limits(**asked["limits"]), asked["audio_track"])
                self._send(PROBED, _media_to(media))
            else:
                self._decode(path, _request_from(asked))
        except AvtoolError as error:
            self._error(type(error).__name__, error.what, error.why, error.hint)
        except MemoryError:
            what, why = f"{printable(path)} cannot be decoded", "it needs more memory than the decoder may use"
            self._error("InputError", what, why, "re-encode the file at a smaller size")
        except Exception:
            self._error("", traceback.format_exc(), "", "")

    def _decode(self, path: str, request: DecodeRequest) -> None:
        from avtool.media.decoding import decode

        self._sent = self._given = None
        for item in decode(path, request, self._progress, allocate=self._allocate):
            if isinstance(item, Picture):
                self._picture(item)
            elif isinstance(item, Sound):
                payload = np.ascontiguousarray(item.samples) if item.samples.any() else None  # silence is a number
                self._send(SOUND, (item.start, 0.0, len(item.samples), 0, 0), payload)
            else:
                self._send(REPORT, {**asdict(item), "media": _media_to(item.media)})

    def _picture(self, picture: Picture) -> None:
        pixels, place = picture.pixels, INSIDE
        if pixels is self._sent:
            place = SAME
        elif self._given is not None and self._given[0] is pixels:
            place = self._given[1]
        height, width, _ = pixels.shape
        self._send(PICTURE, (picture.row, picture.time, height, width, place), pixels if place == INSIDE else None)
        self._sent = pixels

    def _allocate(self, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        """Memory for one picture: a free place of the ring, or private memory if it is too large for one."""
        size, room = shape[0] * shape[1] * shape[2], RING_BYTES - RING_START
        if self._memory is None or size > room // 2:
            return np.empty(shape, np.uint8)
        if size != self._place_bytes:
            self._wait(0)
            self._place_bytes, self._places = size, min(SLOTS, room // max(1, size))
        self._wait(self._places - 1)
        offset = RING_START + self._put % self._places * size
        self._put += 1
        pixels: npt.NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._memory, offset)
        self._given = (pixels, offset)
        return pixels

    def _wait(self, most: int) -> None:
        """Waits until at most so many pictures are in the ring; waiting for the parent is no hang."""
        if self._put - int(self._taken[0]) <= most:
            return
        self._flush()
        self._patience(0)
        while self._put - int(self._taken[0]) > most:
            time.sleep(FULL_SECONDS)
        self._patience(self._limit)

    def _progress(self, stage: str, done: float, total: float) -> None:
        now = time.monotonic()
        if now - self._last_sign >= SIGN_OF_LIFE:
            self._last_sign = now
            self._send(PROGRESS, {"stage": stage, "done": done, "total": total})
            self._flush()

    def _error(self, kind: str, what: str, why: str, hint: str) -> None:
        self._send(ERROR, {"type": kind, "what": what, "why": why, "hint": hint})

    def _send(
        self,
        kind: bytes,
        facts: tuple[int, float, int, int, int] | Mapping[str, Any],
        payload: npt.NDArray[Any] | None = None,
    ) -> None:
        """Queues a message; what ends a request, or fills the batch, sends it."""
        text = json.dumps(facts).encode() if isinstance(facts, Mapping) else b""
        numbers = (0, 0.0, 0, 0, 0) if isinstance(facts, Mapping) else facts
        body = memoryview(b"") if payload is None else payload.reshape(-1).view(np.uint8).data
        now = time.monotonic()
        if not self._batch:
            self._batch_since = now
        self._batch += (HEADER.pack(kind, len(text), len(body), *numbers) + text, body)
        self._batch_bytes += len(text) + len(body)
        full = self._batch_bytes > BATCH_BYTES or len(self._batch) >= BATCH_PIECES
        if full or kind in (TAKEN, REPORT, PROBED, ERROR) or now - self._batch_since > BATCH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Sends what was held back; waiting for the parent is no hang."""
        self._patience(0)
        try:
            _write(self._out, self._batch)
        except OSError:
            os._exit(0)
        self._batch, self._batch_bytes = [], 0
        self._patience(self._limit)

    def _patience(self, seconds: float) -> None:
        """The kernel ends the process when it does nothing for so long, even inside FFmpeg; 0 is for ever."""
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _write(fd: int, pieces: list[bytes | memoryview]) -> None:
    """Writes all pieces, in one call if the pipe takes them."""
    done = os.writev(fd, pieces) if pieces else 0
    for piece in pieces:
        rest = memoryview(piece)[done:]
        done = max(0, done - len(piece))
        while rest:
            rest = rest[os.write(fd, rest) :]


def _limit_memory(size: int) -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))


def main(arguments: list[str]) -> NoReturn:
    """Entry point of the child: descriptor of the shared memory (or -1), seconds of patience, bytes of memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shared, stall, memory = int(arguments[0]), float(arguments[1]), int(arguments[2])
    _limit_memory(memory)
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may reach the parent as a message
    server = Server(out, shared, stall)
    server.listen()
    import avtool.media.decoding  # noqa: F401  ready before the first request

    server.run()


if __name__ == "__main__":
    main(sys.argv[1:])
