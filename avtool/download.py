"""Downloads over HTTPS that end with the right file or a clear reason: resumed, checked, never half in place.

Nothing here runs unless the user asks for a download (`avtool weights fetch`). No cookies, no credentials and nothing
about the user are sent; certificates are always verified.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import logging
import os
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from avtool import __version__
from avtool.errors import UsageError
from avtool.files import Partial, check_space, partial, printable

TIMEOUT = 30.0  # seconds without a byte, or for a connection
STALL_SECONDS, STALL_BYTES = 60.0, 64 << 10  # less than so much in so long counts as a stall
ATTEMPTS = 4  # in a row at one address that bring nothing new
MAX_WAIT = 120.0  # seconds that a server may ask to wait
MAX_REDIRECTS = 5
MAX_BYTES = 8 << 30  # of a file whose size is not known
CHUNK = 1 << 20
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP states that may pass
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

log = logging.getLogger("avtool")
OnProgress = Callable[[str, float, float], None]  # "download", bytes here, bytes in all or 0


@dataclass(frozen=True)
class Content:
    """What a file consists of, as far as its hashes tell."""

    size: int
    sha256: str
    md5: str


class DownloadError(Exception):
    """No address gave the file; the text is one line with the reason of each."""


class _Failed(Exception):
    """One attempt at one address failed; `again`: another may not."""

    def __init__(self, why: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(why)
        self.again, self.wait = again, wait


class _Wrong(_Failed):
    """The content is whole and not the one wanted."""


class _Beyond(_Failed):
    """There is nothing behind the bytes that are here; `total`: bytes of the whole file, 0 if the server is silent."""

    def __init__(self, why: str, total: int) -> None:
        super().__init__(why, again=True)
        self.total = total


def download(
    urls: Sequence[str],
    target: Path,
    check: Callable[[Content], str],
    *,
    size: int = 0,
    resume: bool = True,
    room: int = 0,
    plain: bool = False,
    done: Callable[[], bool] = lambda: False,
    on_progress: OnProgress | None = None,
) -> None:
    """Brings the first of several equal files that can be had to `target`, going on where an earlier attempt stopped.

    Args:
        urls: where it is published, best first; https, or http on this machine.
        target: where it goes; until it is whole and right it is `target` + ".part".
        check: why the content is not the one wanted, or "".
        size: bytes it must have; 0: not known.
        resume: `check` knows the whole content, so that parts of different origin cannot be mistaken for it.
        room: bytes that must be free besides.
        plain: the addresses may be of http too, on any machine.
        done: whether there is no need any more, asked after waiting for another process that had the same aim.
        on_progress: called as ("download", bytes here, bytes in all or 0).

    Raises:
        DownloadError: no address gave the right file.
        OutputError: the file cannot be written, or there is not enough space.
        UsageError: an address is not one that avtool opens.
    """
    for url in urls:
        _require_address(url, plain)
    with partial(target, lambda: log.warning("another process downloads %s; waiting for it", target.name)) as part:
        if target.is_file() or done():  # that process has brought it meanwhile, and perhaps used it up
            return
        job = _Job(part, target, check, size, resume, room, _opener(plain), on_progress or (lambda *_: None))
        reasons = []
        for url in urls:
            try:
                job.fetch(url)
                part.keep()
                return
            except _Failed as error:
                reasons.append(f"{urlsplit(url).hostname}: {error}")
                log.info("%s", reasons[-1])
    raise DownloadError("; ".join(reasons) or "no address is known")


class _Job:
    """One file, whatever it takes."""

    def __init__(
        self,
        part: Partial,
        target: Path,
        check: Callable[[Content], str],
        size: int,
        resume: bool,
        room: int,
        opener: urllib.request.OpenerDirector,
        say: OnProgress,
    ) -> None:
        self._part, self._target, self._check = part, target, check
        self._size, self._resume, self._room, self._opener, self._say = size, resume, room, opener, say
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        if resume:
            for data in part.read():
                self._sha256.update(data)
                self._md5.update(data)
        else:
            self._restart()

    def fetch(self, url: str) -> None:
        """Tries one address until the right file is there or nothing new comes any more."""
        best, attempt, second_chance = self._part.size, 0, True
        while True:
            resumed = self._part.size > 0
            try:
                if not (self._size and self._part.size == self._size):
                    self._attempt(url)
                return self._finish()
            except _Wrong:
                if not (resumed and second_chance):
                    raise
                second_chance = False  # the parts may have been of two files
            except _Failed as error:
                attempt = 1 if self._part.size > best else attempt + 1
                best = max(best, self._part.size)
                if not self._resume:
                    self._restart()
                if not error.again or attempt >= ATTEMPTS:
                    raise
                pause(min(2.0**attempt, 30.0) * random.uniform(0.5, 1.0) if error.wait is None else error.wait)

    def _finish(self) -> None:
        content = Content(self._part.size, self._sha256.hexdigest(), self._md5.hexdigest())
        if why := self._check(content):
            self._restart()
            raise _Wrong(why)

    def _restart(self) -> None:
        self._part.restart()
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def _attempt(self, url: str) -> None:
        begin = self._part.size
        try:
            response = _open(self._opener, url, begin)
        except _Beyond as error:
            if error.total == begin:
                return
            self._restart()
            raise
        with response:
            total = self._begin(response, begin)
            check_space(self._target.parent, max(0, total - self._part.size) + self._room)
            for data in _chunks(response):
                self._add(data, total)
        if self._part.size < total:
            raise _Failed(f"the connection ended after {self._part.size} of {total} bytes", again=True)

    def _begin(self, response: Any, begin: int) -> int:
        """Bytes of the whole file, 0 if nobody says; what is here and cannot be continued by the answer is dropped."""
        headers: Message = response.headers
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Failed("the server sends the file in another encoding")
        if headers.get_content_type() == "text/html":
            raise _Failed("the server sends a web page in place of the file")
        first, total = 0, _number(headers.get("Content-Length"))
        if response.status == 206:
            first, total = _content_range(headers)
        if self._size and total not in (0, self._size):
            raise _Failed(f"the file has {total} bytes there, not {self._size}")
        if first != begin:
            self._restart()
        if first not in (begin, 0):
            raise _Failed(f"the server sends the part from byte {first} on, asked for {begin}", again=True)
        return total or self._size

    def _add(self, data: bytes, total: int) -> None:
        if self._part.size + len(data) > (total or MAX_BYTES):
            self._restart()
            raise _Failed(f"the server sends more than {total or MAX_BYTES} bytes")
        self._part.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self._say("download", self._part.size, total)


# ---------------------------------------------------------------- one request


def pause(seconds: float) -> None:
    """Waits between two attempts."""
    time.sleep(seconds)


def _open(opener: urllib.request.OpenerDirector, url: str, begin: int) -> Any:
    """The answer to one request for the bytes from `begin` on.

    Raises:
        _Failed: whatever goes wrong on the way.
    """
    headers = {"User-Agent": f"avtool/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(error, begin) from None
    except urllib.error.URLError as error:
        raise _broken(error.reason if isinstance(error.reason, BaseException) else error) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _broken(error) from None


def _chunks(response: Any) -> Iterator[bytes]:
    """What comes, as it comes; a server that sends next to nothing is not waited for.

    Raises:
        _Failed: the connection broke or stalled.
    """
    since, got = time.monotonic(), 0
    while True:
        try:
            data = response.read1(CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(error) from None
        if not data:
            return
        yield data
        got += len(data)
        if (now := time.monotonic()) - since >= STALL_SECONDS:
            if got < STALL_BYTES:
                raise _Failed(f"only {got} bytes in {now - since:.0f} s", again=True)
            since, got = now, 0


def _refused(error: urllib.error.HTTPError, begin: int) -> _Failed:
    """What an HTTP state other than success means."""
    why = f"HTTP {error.code} {printable(str(error.reason))[:60]}".rstrip()
    if error.code == 416 and begin:
        total = error.headers.get("Content-Range", "").strip().removeprefix("bytes */")
        return _Beyond(why, _number(total))
    wait = _retry_after(error.headers)
    if wait is not None and wait > MAX_WAIT:
        return _Failed(f"{why}; the server asks to come back in {wait:.0f} s")
    return _Failed(why, again=error.code in _AGAIN, wait=wait if error.code in _AGAIN else None)


def _broken(error: BaseException) -> _Failed:
    """What an error below HTTP means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Failed(f"its certificate is not valid: {printable(str(error.verify_message))}")
    if isinstance(error, TimeoutError):
        return _Failed(f"nothing came for {TIMEOUT:.0f} s", again=True)
    text = printable(str(getattr(error, "strerror", None) or error).strip().split("\n", 1)[0][:120])
    return _Failed(text or type(error).__name__, again=not isinstance(error, ValueError))


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _content_range(headers: Message) -> tuple[int, int]:
    """First byte of a part, and bytes of the whole file (0: the server does not say)."""
    match = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if not match:
        raise _Failed("the server sends a part and does not say which")
    return int(match[1]), 0 if match[2] == "*" else int(match[2])


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


# ---------------------------------------------------------------- which addresses


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirections, never to an address that would not have been opened in the first place."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    def redirect_request(
        self, request: urllib.request.Request, body: IO[bytes], code: int, text: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        """The next request, with the few harmless headers of the first."""
        try:
            _require_address(url, self._plain)
            safe = request.type == "http" or urlsplit(url).scheme == "https"
        except UsageError:
            safe = False
        if not safe:
            raise _Failed(f"it leads to {printable(_bare(url))}, which is not opened")
        return super().redirect_request(request, body, code, text, headers, url)


def _opener(plain: bool) -> urllib.request.OpenerDirector:
    """HTTP and HTTPS with verified certificates, through the system's proxy if one is set; nothing else."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(plain),
    ):
        opener.add_handler(handler)
    return opener


def _require_address(url: str, plain: bool) -> None:
    """Refuses what is not https without a password; http only where `plain` says so or on this machine.

    Raises:
        UsageError: as said.
    """
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname or "", parts.username is not None or parts.password is not None
    except ValueError:
        parts, host, secret = urlsplit(""), "", False
    fine = parts.scheme == "https" or (parts.scheme == "http" and (plain or _is_here(host)))
    if not host or secret or not fine:
        why = "an address with a password is not used" if secret else "weights come over https only"
        raise UsageError(f"{printable(_bare(url))} is not opened", why)


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bare(url: str) -> str:
    """An address without user, password and query, fit to be shown."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])[:200]


def environment_says_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """True if AVTOOL_OFFLINE forbids the network."""
    return environ.get("AVTOOL_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")
