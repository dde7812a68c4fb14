"""Whatever a server does, the right file is in place afterwards, or none and a reason in one line."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from avtool import download, files
from avtool.download import Content, DownloadError
from avtool.errors import OutputError, UsageError
from tests.servers import Served, cut, drip, good, no_ranges, reset, says, serving, stall

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; what would have been waited is listed."""
    waited: list[float] = []
    monkeypatch.setattr(download, "pause", waited.append)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return waited


def check(content: Content) -> str:
    return "" if content.sha256 == SHA256 else f"its sha256 is {content.sha256}"


def fetch(target: Path, *urls: str, **options: Any) -> None:
    download.download(urls, target, check, **{"size": len(DATA), **options})


def refused(target: Path, *urls: str, **options: Any) -> str:
    """The reason in one line; nothing is in place."""
    with pytest.raises(DownloadError) as caught:
        fetch(target, *urls, **options)
    text = str(caught.value)
    assert "\n" not in text and text.isprintable()
    assert not target.exists()
    return text


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pt"


# ---------------------------------------------------------------- what ends well


def test_a_good_server(target: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    with serving(DATA) as server:
        fetch(target, server.url, on_progress=lambda *what: seen.append(what))
    assert target.read_bytes() == DATA
    assert [p.name for p in target.parent.iterdir()] == ["weights.pt"]
    assert seen[-1] == ("download", len(DATA), len(DATA))
    assert all(a[1] < b[1] for a, b in pairwise(seen))


GOES_WELL: dict[str, tuple[Any, ...]] = {
    "refuses ranges": (no_ranges,),
    "cuts once": (cut(100_000), good),
    "cuts again and again": (cut(50_000),),
    "cuts once and refuses ranges": (cut(100_000), no_ranges),
    "resets the connection": (reset(70_000), reset(70_000), good),
    "cuts before the first byte": (cut(0), cut(0), good),
    "says 500 twice": (says(500), says(503), good),
    "says 429": (says(429, b"slow down", Retry_After=7), good),
    "sends the whole when asked for a part, as a part": (
        cut(100_000),
        lambda h, s: h.send(
            206,
            {"Content-Length": len(s.data), "Content-Range": f"bytes 0-{len(s.data) - 1}/{len(s.data)}"},
            s.data,
        ),
    ),
    "sends a part from elsewhere, once": (
        cut(100_000),
        lambda h, s: h.send(206, {"Content-Length": 9, "Content-Range": f"bytes 5-13/{len(s.data)}"}, s.data[5:14]),
        good,
    ),
    "does not say how long it is": (lambda h, s: h.send(200, {}, s.data),),
    "cuts without having said how long it is": (lambda h, s: h.send(200, {}, s.data[:9000]), good),
    "claims more than there is, once": (
        lambda h, s: h.send(200, {"Content-Length": len(s.data)}, s.data[:-5]),
        good,
    ),
}


@pytest.mark.parametrize("kind", GOES_WELL)
def test_servers_that_can_be_dealt_with(target: Path, kind: str) -> None:
    with serving(DATA, *GOES_WELL[kind]) as server:
        fetch(target, server.url)
    assert target.read_bytes() == DATA
    assert [p.name for p in target.parent.iterdir()] == ["weights.pt"]


def test_what_is_here_is_not_sent_again(target: Path) -> None:
    with serving(DATA, cut(100_000), cut(50_000), good) as server:
        fetch(target, server.url)
    assert server.ranges == ["", "bytes=100000-", "bytes=150000-"]
    assert server.sent == len(DATA)


def test_what_is_sent_whole_replaces_what_was_here(target: Path) -> None:
    """Two bodies one behind the other would have the wrong hash, and be sent a third time."""
    with serving(DATA, cut(100_000), no_ranges) as server:
        fetch(target, server.url)
    assert target.read_bytes() == DATA and len(server.requests) == 2


def test_a_stall_is_a_cut(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    with serving(DATA, stall(1000, 5.0), good) as server:
        fetch(target, server.url)
    assert target.read_bytes() == DATA and server.ranges == ["", "bytes=1000-"]


def test_a_trickle_is_a_stall(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)
    with serving(DATA, drip(0.02)) as server:
        assert "bytes in 0 s" in refused(target, server.url)


def test_the_next_address(target: Path) -> None:
    """The part that the first one brought is used."""
    with serving(DATA, cut(100_000), says(404)) as first, serving(DATA) as second:
        fetch(target, first.url, second.url)
    assert target.read_bytes() == DATA and second.ranges == ["bytes=100000-"]


def test_an_address_with_another_file_does_no_harm(target: Path) -> None:
    other = bytes(len(DATA))
    with serving(other) as first, serving(DATA[:-1]) as second, serving(DATA) as third:
        fetch(target, first.url, second.url, third.url)
    assert target.read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_sent_again(target: Path) -> None:
    """The beginning was of another file of the same length."""
    with serving(bytes(len(DATA)), cut(100_000), says(404)) as old:
        refused(target, old.url)
    assert files.unfinished(target) == 100_000
    with serving(DATA) as new:
        fetch(target, new.url)
    assert target.read_bytes() == DATA and new.ranges == ["bytes=100000-", ""]


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_whole_or_longer(target: Path, extra: int) -> None:
    """Killed between the last byte and the renaming; or something else got in."""
    target.parent.mkdir()
    (target.parent / "weights.pt.part").write_bytes(DATA + bytes(extra))
    with serving(DATA) as server:
        fetch(target, server.url, size=0 if extra else len(DATA))
    assert target.read_bytes() == DATA and len(server.requests) == (2 if extra else 0)


def test_a_whole_part_of_unknown_length(target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "weights.pt.part").write_bytes(DATA)
    with serving(DATA) as server:
        fetch(target, server.url, size=0)
    assert target.read_bytes() == DATA and server.sent == 0


def test_parts_are_not_joined_where_the_hash_is_not_known(target: Path) -> None:
    with serving(DATA, cut(100_000), good) as server:
        fetch(target, server.url, resume=False)
    assert target.read_bytes() == DATA and server.ranges == ["", ""]


def test_the_server_says_how_long_to_wait(target: Path, pauses: list[float]) -> None:
    with serving(DATA, says(429, Retry_After=7), says(503, Retry_After="junk"), good) as server:
        fetch(target, server.url)
    assert pauses[0] == 7 and 0 < pauses[1] <= 30


# ---------------------------------------------------------------- what cannot end well

GOES_WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "404": ((says(404),), "HTTP 404"),
    "403": ((says(403),), "HTTP 403"),
    "500 for ever": ((says(500),), "HTTP 500"),
    "429 for ever": ((says(429, Retry_After=1),), "HTTP 429"),
    "come back tomorrow": ((says(429, Retry_After=86400),), "come back in 86400 s"),
    "nothing": ((says(200),), "ended after 0"),
    "no content": ((says(204),), "ended after 0"),
    "other bytes": ((lambda h, s: h.send(200, {"Content-Length": len(s.data)}, bytes(len(s.data))),), "its sha256"),
    "a web page": ((says(200, b"<html>Sign in</html>", Content_Type="text/html; charset=utf-8"),), "a web page"),
    "claims fewer bytes": ((lambda h, s: h.send(200, {"Content-Length": 1000}, s.data),), "1000 bytes there, not"),
    "claims more bytes": (
        (lambda h, s: h.send(200, {"Content-Length": len(s.data) + 9}, s.data),),
        f"{len(DATA) + 9} bytes there, not",
    ),
    "sends more than it should": ((lambda h, s: h.send(200, {}, s.data + bytes(9)),), "sends more than"),
    "ends early for ever": (
        (lambda h, s: h.send(200, {"Content-Length": len(s.data)}, s.data[:-1]),),
        f"ended after {len(DATA) - 1} of {len(DATA)} bytes",
    ),
    "a part that is not described": ((cut(1000), says(206, b"x" * 10)), "does not say which"),
    "packed": ((says(200, gzip.compress(DATA), Content_Encoding="gzip"),), "another encoding"),
    "no HTTP": ((lambda h, s: h.wfile.write(b"SSH-2.0-x\r\n\r\n"),), "127.0.0.1: "),
    "endless headers": ((lambda h, s: h.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000),), "127.0.0.1: "),
    "a control sign in the reason": ((lambda h, s: h.send_error(404, "\x1b[31mred"),), "\\x1b[31mred"),
}


@pytest.mark.parametrize("kind", GOES_WRONG)
def test_servers_that_cannot_be_dealt_with(target: Path, kind: str) -> None:
    behaviours, word = GOES_WRONG[kind]
    with serving(DATA, *behaviours) as server:
        assert word in refused(target, server.url)
        assert len(server.requests) <= 2 * download.ATTEMPTS


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_faults(target: Path, seed: int) -> None:
    """The right file or none; the part that is left never becomes the file."""
    rng = random.Random(seed)
    faults: list[Callable[[], Any]] = [
        lambda: good,
        lambda: no_ranges,
        lambda: cut(rng.randrange(len(DATA))),
        lambda: cut(rng.randrange(len(DATA)), ranges=False),
        lambda: reset(rng.randrange(len(DATA))),
        lambda: says(rng.choice([404, 416, 429, 500, 302])),
        lambda: says(200, bytes(rng.randrange(1000))),
        lambda: says(206, bytes(1000), Content_Range=f"bytes {rng.randrange(9)}-{rng.randrange(9999)}/*"),
    ]
    for _ in range(3):
        with (
            serving(DATA, *(rng.choice(faults)() for _ in range(4))) as one,
            serving(rng.choice([DATA, bytes(len(DATA))]), *(rng.choice(faults)() for _ in range(4))) as two,
        ):
            try:
                fetch(target, one.url, two.url, size=rng.choice([0, len(DATA)]))
            except DownloadError:
                assert not target.exists()
            else:
                assert target.read_bytes() == DATA
                return
    with serving(DATA) as server:
        fetch(target, server.url)
    assert target.read_bytes() == DATA


def test_nobody_listens(target: Path) -> None:
    with serving(DATA) as server:
        pass
    assert "refused" in refused(target, server.url).lower()


# ---------------------------------------------------------------- where it leads, and what is told


def leads(to: str, code: int = 302) -> Callable[[Any, Served], None]:
    return lambda handler, served: handler.send(code, {"Location": to, "Content-Length": 0})


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirections_are_followed(target: Path, code: int) -> None:
    with serving(DATA, cut(1000), good) as end, serving(b"", leads(end.url, code)) as start:
        fetch(target, start.url)
    assert target.read_bytes() == DATA and end.ranges == ["", "bytes=1000-"]


@pytest.mark.parametrize(
    "to",
    ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://example.org/x", "http://u:p@127.0.0.1/x", "data:,x", "//"],
)
def test_redirections_that_lead_astray(target: Path, to: str) -> None:
    with serving(b"", leads(to)) as server:
        text = refused(target, server.url)
    assert "u:p" not in text


def test_redirections_in_a_circle(target: Path) -> None:
    with serving(b"", lambda h, s: h.send(302, {"Location": s.url, "Content-Length": 0})) as server:
        assert "HTTP 302" in refused(target, server.url)
        assert len(server.requests) <= 1 + download.MAX_REDIRECTS


def test_from_https_to_http_is_not_followed() -> None:
    import urllib.request
    from email.message import Message

    request = urllib.request.Request("https://example.org/x")
    handler = download._Redirects(plain=True)
    for url in ("http://example.org/x", "http://127.0.0.1/x"):
        with pytest.raises(Exception, match="is not opened"):
            handler.redirect_request(request, None, 302, "", Message(), url)  # type: ignore[arg-type]
    new = handler.redirect_request(request, None, 302, "", Message(), "https://cdn.example.org/x")  # type: ignore[arg-type]
    assert new is not None and new.full_url == "https://cdn.example.org/x"


@pytest.mark.parametrize(
    "url",
    ["http://example.org/x", "ftp://example.org/x", "file:///etc/hostname", "example.org/x", "", "https://", "http://[",
     "https://user:secret@example.org/x", "data:,x", "javascript:x"],
)  # fmt: skip
def test_addresses_that_are_not_opened(target: Path, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        fetch(target, url)
    assert "secret" not in f"{caught.value.what} {caught.value.why} {caught.value.hint}"
    assert not target.parent.exists()


def test_nothing_about_the_user_is_told(target: Path, home: Path) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (home / ".netrc").chmod(0o600)
    with serving(DATA, cut(1000), good) as server:
        fetch(target, server.url)
    names = {name for request in server.requests for name in request}
    assert names == {"path", "Host", "User-Agent", "Accept", "Accept-Encoding", "Connection", "Range"}
    assert {request["User-Agent"].split("/")[0] for request in server.requests} == {"avtool"}


def test_certificates_are_verified(target: Path, tmp_path: Path) -> None:
    """A server that says it is 127.0.0.1 and has signed that itself."""
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(DATA, wrap=lambda s: context.wrap_socket(s, server_side=True)) as server:
        assert "certificate is not valid" in refused(target, server.url.replace("http:", "https:"))
    with serving(DATA) as server:
        refused(target, server.url.replace("http:", "https:"))
        assert server.requests == []


# ---------------------------------------------------------------- the disk


def test_too_little_space(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SPARE_BYTES", 0)
    usage = shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(DATA) - 1))
    with serving(DATA) as server, pytest.raises(OutputError, match="not enough space") as caught:
        fetch(target, server.url)
    assert "MB are needed" in caught.value.why
    assert not target.exists() and server.requests


def test_a_full_disk(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been written stays for the next attempt."""

    def write(self: files.Partial, data: bytes) -> None:
        if self.size > 100_000:
            raise OSError(28, "No space left on device")
        original(self, data)

    original = files.Partial.write
    with serving(DATA) as server:
        monkeypatch.setattr(files.Partial, "write", write)
        monkeypatch.setattr(download, "CHUNK", 50_000)
        with pytest.raises(OutputError, match="cannot write"):
            fetch(target, server.url)
        assert not target.exists() and 100_000 < files.unfinished(target) <= 200_000
        monkeypatch.setattr(files.Partial, "write", original)
        fetch(target, server.url)
    assert target.read_bytes() == DATA


# ---------------------------------------------------------------- processes

CHILD = """
import hashlib, sys
from pathlib import Path
from avtool import download
sha256, size, target, url = sys.argv[1:]
check = lambda content: "" if content.sha256 == sha256 else "wrong"
download.download([url], Path(target), check, size=int(size))
"""


def child(repo: Path, target: Path, url: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    return subprocess.Popen([sys.executable, "-c", CHILD, SHA256, str(len(DATA)), str(target), url], env=environment)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_and_run_again(repo: Path, target: Path) -> None:
    """kill -9 at any time; the next run asks for what is missing alone."""
    gate = threading.Event()

    def slowly(handler: Any, served: Served) -> None:
        begin = handler.begin()
        headers: dict[str, Any] = {"Content-Length": len(DATA) - begin}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}"
        handler.send(206 if begin else 200, headers, DATA[begin : begin + 80_000])
        gate.wait(60)

    with serving(DATA, slowly, slowly, slowly, good) as server:
        for number in range(1, 4):
            process = child(repo, target, server.url)
            while files.unfinished(target) < 80_000 * number - 8192 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert not target.exists()
        gate.set()
        assert child(repo, target, server.url).wait(60) == 0
    assert target.read_bytes() == DATA
    begins = [int(r.removeprefix("bytes=").rstrip("-") or 0) for r in server.ranges]
    assert begins[0] == 0 and all(a < b for a, b in pairwise(begins))
    assert [p.name for p in target.parent.iterdir()] == ["weights.pt"]


@pytest.mark.skipif(os.name != "posix", reason="file locks")
def test_two_at_once_take_turns(repo: Path, target: Path) -> None:
    both = threading.Event()

    def patiently(handler: Any, served: Served) -> None:
        handler.send(200, {"Content-Length": len(DATA)}, DATA[:1000])
        both.wait(30)
        handler.write(DATA[1000:])

    with serving(DATA, patiently, good) as server:
        one = child(repo, target, server.url)
        while not server.requests:
            time.sleep(0.01)
        two = child(repo, target, server.url)
        with pytest.raises(subprocess.TimeoutExpired):
            two.wait(1.0)
        both.set()
        assert (one.wait(60), two.wait(60)) == (0, 0)
    assert len(server.requests) == 1
    assert target.read_bytes() == DATA
    assert [p.name for p in target.parent.iterdir()] == ["weights.pt"]
