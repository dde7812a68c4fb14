"""A web server on this machine that misbehaves to order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """What a server has and how it behaves; behaviours are used up one a request, the last one stays."""

    data: bytes
    behaviours: list[Callable[[Any, Served], None]]
    requests: list[dict[str, str]] = field(default_factory=list)  # path and headers of each
    sent: int = 0  # bytes of bodies
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ranges(self) -> list[str]:
        """The Range header of each request, "" where there was none."""
        return [request.get("Range", "") for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        served = self.served
        with served.lock:
            served.requests.append({"path": self.path, **dict(self.headers)})
            number = len(served.requests) - 1
        with suppress(ConnectionError, TimeoutError):  # the client has what it wants
            served.behaviours[min(number, len(served.behaviours) - 1)](self, served)
        self.close_connection = True

    def send(self, code: int, headers: dict[str, Any], body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.write(body)

    def write(self, body: bytes) -> None:
        self.wfile.write(body)
        self.wfile.flush()
        with self.served.lock:
            self.served.sent += len(body)

    def begin(self) -> int:
        """First byte asked for."""
        asked = self.headers.get("Range", "bytes=0-")
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def log_message(self, format: str, *args: object) -> None:
        return None


@contextmanager
def serving(
    data: bytes, *behaviours: Callable[[Any, Served], None], wrap: Callable[[Any], Any] | None = None
) -> Iterator[Served]:
    """A server with one file, at `url`; `wrap` makes its socket one of TLS."""
    served = Served(data, list(behaviours) or [good])
    handler = type("Bound", (Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if wrap:
        server.socket = wrap(server.socket)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/weights.pt"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


# ---------------------------------------------------------------- behaviours


def good(handler: Handler, served: Served) -> None:
    """Answers as RFC 9110 says, with ranges."""
    begin, total = handler.begin(), len(served.data)
    if "Range" not in handler.headers:
        return handler.send(200, {"Content-Length": total}, served.data)
    if begin >= total:
        return handler.send(416, {"Content-Range": f"bytes */{total}", "Content-Length": 0})
    headers = {"Content-Length": total - begin, "Content-Range": f"bytes {begin}-{total - 1}/{total}"}
    handler.send(206, headers, served.data[begin:])


def no_ranges(handler: Handler, served: Served) -> None:
    """Sends all, whatever is asked for."""
    handler.send(200, {"Content-Length": len(served.data)}, served.data)


def cut(after: int, ranges: bool = True) -> Callable[[Handler, Served], None]:
    """Closes the connection after some bytes of the answer."""

    def behave(handler: Handler, served: Served) -> None:
        begin, total = (handler.begin() if ranges else 0), len(served.data)
        headers: dict[str, Any] = {"Content-Length": total - begin}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        handler.send(206 if begin else 200, headers, served.data[begin : begin + after])

    return behave


def reset(after: int) -> Callable[[Handler, Served], None]:
    """Drops the connection with a reset after some bytes."""

    def behave(handler: Handler, served: Served) -> None:
        import socket
        import struct

        cut(after)(handler, served)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return behave


def stall(after: int, seconds: float) -> Callable[[Handler, Served], None]:
    """Sends some bytes, then nothing."""

    def behave(handler: Handler, served: Served) -> None:
        cut(after)(handler, served)
        threading.Event().wait(seconds)

    return behave


def drip(seconds: float) -> Callable[[Handler, Served], None]:
    """Sends a byte at a time."""

    def behave(handler: Handler, served: Served) -> None:
        handler.send(200, {"Content-Length": len(served.data)})
        for i in range(len(served.data)):
            handler.write(served.data[i : i + 1])
            threading.Event().wait(seconds)

    return behave


def says(code: int, body: bytes = b"", **headers: Any) -> Callable[[Handler, Served], None]:
    """One state with any headers and body; `Content_Length` becomes Content-Length."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, served: handler.send(code, {"Content-Length": len(body), **named}, body)
