"""A media file makes the decoder read that file and nothing else: no other file, no socket, no waiting."""

from __future__ import annotations

import ctypes
import io
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from avtool.errors import InputError
from avtool.media.child import DecodeChild
from avtool.media.cut import cut
from avtool.media.decoding import decode
from avtool.media.probe import FORMATS, probe
from avtool.media.request import DecodeRequest, PictureSpec
from tests.synth import CASES_BY_NAME, good, write

REQUEST = DecodeRequest(PictureSpec(), 16_000)
IN_ACCESS, IN_OPEN = 0x1, 0x20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches files with inotify")


class Watch:
    """Counts how often files of a folder are opened or read, by whoever does it."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._fd >= 0
        assert self._libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_OPEN | IN_ACCESS) >= 0

    def opened(self) -> set[str]:
        """Names opened or read since the last question."""
        names = set()
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return set()
        while data:
            _, _, _, size = struct.unpack_from("iIII", data)
            names.add(os.fsdecode(data[16 : 16 + size].rstrip(b"\0")))
            data = data[16 + size :]
        return names

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[Path], Watch]]:
    watches: list[Watch] = []

    def start(folder: Path) -> Watch:
        watches.append(Watch(folder))
        return watches[-1]

    yield start
    for one in watches:
        one.close()


def attempts(path: Path) -> None:
    """Everything that can be done to a file."""
    cuts = [partial(cut, path, 0.0, 1.0, io.BytesIO(), exact=exact) for exact in (False, True)]
    for act in (lambda: probe(path), lambda: list(decode(path, REQUEST)), *cuts):
        with suppress(InputError):
            act()


NAMING = [
    name for name in CASES_BY_NAME if name.startswith(("playlist_", "concat_", "dash", "session", "mp4_data_elsewhere"))
]


def test_the_watch_works(tmp_path: Path, watch: Callable[[Path], Watch]) -> None:
    film = write(tmp_path / "secret.ts")
    seen = watch(tmp_path)
    probe(film)
    assert seen.opened() == {"secret.ts"}


@pytest.mark.parametrize("name", NAMING)
def test_no_other_file_is_opened(name: str, tmp_path: Path, watch: Callable[[Path], Watch]) -> None:
    path = CASES_BY_NAME[name].make(tmp_path)
    seen = watch(tmp_path)
    attempts(path)
    assert seen.opened() <= {path.name}


def test_no_other_file_is_opened_in_the_child(tmp_path: Path, watch: Callable[[Path], Watch]) -> None:
    with DecodeChild() as child:
        for name in NAMING:
            folder = tmp_path / name
            folder.mkdir()
            path = CASES_BY_NAME[name].make(folder)
            seen = watch(folder)
            for act in (lambda p=path: child.probe(p), lambda p=path: list(child.decode(p, REQUEST))):
                try:
                    act()
                except InputError:
                    continue
            assert seen.opened() <= {path.name}, name


@pytest.mark.parametrize("file", ["a.m3u8", "a.mp4", "a.sdp", "a.ffconcat", "a.mpd", "a.txt"])
@pytest.mark.parametrize("scheme", ["http", "tcp", "rtsp", "rtmp", "udp", "ftp"])
def test_nothing_is_fetched(file: str, scheme: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/a.ts"
        text = {
            ".ffconcat": f"ffconcat version 1.0\nfile {url}\n",
            ".sdp": f"v=0\nc=IN IP4 127.0.0.1\nm=video {server.getsockname()[1]} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
            ".mpd": f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{url}</BaseURL></Period></MPD>',
        }.get(Path(file).suffix, f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n")
        path = tmp_path / file
        path.write_text(text)
        attempts(path)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # whoever had called would be waiting in the queue
            server.accept()


def test_the_child_holds_no_socket_and_only_its_file(tmp_path: Path) -> None:
    film = good(tmp_path / "a.mp4")
    with DecodeChild() as child:
        items = child.decode(film, REQUEST)
        next(items)
        assert child._process is not None
        folder = Path(f"/proc/{child._process.pid}/fd")
        links = [os.readlink(fd) for fd in folder.iterdir()]
        assert not [link for link in links if link.startswith("socket:")]
        files = {link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/memfd:"))}
        assert files <= {str(film)}
        list(items)


def test_no_format_that_opens_other_things_is_on_the_list() -> None:
    listed = set(FORMATS.split(","))
    bad = "hls concat concatf dash imf sdp rtsp rtp image2 image2pipe vobsub lavfi fbdev v4l2 x11grab alsa kmsgrab"
    assert not listed & set(bad.split())
    assert all(name == name.strip() and name for name in listed)


@pytest.mark.parametrize(
    "argument", ["http://127.0.0.1:9/a", "tcp:127.0.0.1:9", "concat:a|b", "subfile:,,:a", "pipe:0", "-", "data:,x"]
)
def test_an_address_is_a_file_name(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot open"):
        probe(argument)


@pytest.mark.parametrize("name", [case.name for case in CASES_BY_NAME.values() if case.verdict == "error"])
def test_refusal_takes_no_time(name: str, tmp_path: Path) -> None:
    """Two seconds at most, on a busy machine too: what is measured is the time of this process."""
    path = CASES_BY_NAME[name].make(tmp_path)
    wall, cpu = time.monotonic(), time.process_time()
    with pytest.raises(InputError):
        probe(path)
    assert time.process_time() - cpu < 1.0 and time.monotonic() - wall < 10.0
