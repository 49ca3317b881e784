"""A web server on this machine that fails, at socket level, in every way in which servers fail.

    with Loopback(b"weights") as server:
        server.script = ["503", "cut"]      # what the next requests meet; then ``server.default``
        fetch(WeightSource(server.uri("model.bin")))
        server.requests, server.sent        # who asked for what, and how many bytes of bodies went out

As a program (``python tests/loopback.py SIZE [RATE]``) it serves pseudo-random bytes, prints its port and
their sha256, and answers ``/stats`` and ``/reset``; the benchmark uses that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PAGE = b"<!DOCTYPE html><html><title>Sign in</title>" + b"<p>Accept the terms.</p>" * 20
PIECE = 1 << 19


@dataclass
class Request:
    """What a client asked: the method, the path and the headers, names in lower case."""

    method: str
    path: str
    headers: dict[str, str]

    def span(self, size: int) -> tuple[int, int] | None:
        """The range it asked for of a file of that size, if there is such a range."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if not match or int(match[1]) >= size:
            return None
        return int(match[1]), min(size, int(match[2] or size) + 1) if match[2] else size


@dataclass
class Exchange:
    """One request and what is sent back."""

    server: Loopback
    socket: socket.socket
    request: Request

    def head(self, status: int, **headers: object) -> None:
        """Send the status line and headers; an underscore in a name stands for a hyphen."""
        lines = [f"HTTP/1.1 {status} Whatever"]
        lines += [
            f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def body(self, data: bytes | memoryview) -> None:
        """Send bytes, no faster than the server's rate per connection."""
        rate, view = self.server.rate, memoryview(b"" if self.request.method == "HEAD" else data)
        piece = PIECE if rate is None else max(1, int(rate / 50))
        due = time.monotonic()
        while view:
            self.socket.sendall(view[:piece])
            with self.server.lock:
                self.server.sent += min(piece, len(view))
            view = view[piece:]
            if rate is not None:
                due += piece / rate
                time.sleep(max(0.0, due - time.monotonic()))

    def answer(self, data: bytes | None = None, **headers: object) -> tuple[int, bytes | memoryview]:
        """Send the head of a good answer, with or without a range; returns where its body starts, and it."""
        server = self.server
        data = server.body if data is None else data
        span = self.request.span(len(data)) if server.ranges else None
        version = server.etag or server.headers.get("Last_Modified")
        is_other = self.request.headers.get("if-range", version) != version
        common = {
            "ETag": server.etag,
            "Content_Type": "application/octet-stream",
            **server.headers,
            **headers,
        }
        if span is None or is_other:
            if "range" in self.request.headers and server.ranges and span is None:
                self.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
                return 0, b""
            self.head(200, **{"Content_Length": len(data), **common})
            return 0, memoryview(data)
        start, stop = span
        content = f"bytes {start}-{stop - 1}/{len(data)}"
        self.head(206, **{"Content_Length": stop - start, "Content_Range": content, **common})
        return start, memoryview(data)[start:stop]

    def reset(self) -> None:
        """Break the connection so that the client sees a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Loopback:
    """The server; a context manager.

    Args:
        body: of the file, whatever path is asked for.
        ranges: whether parts of it are given.
        rate: bytes per second and connection.
        etag: of the file, or ``None``.
        port: to listen on; any free one without it.
        tls: speaks https with this.
    """

    def __init__(
        self,
        body: bytes = b"",
        *,
        ranges: bool = True,
        rate: float | None = None,
        etag: str | None = '"v1"',
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.body, self.ranges, self.rate, self.etag, self._tls = body, ranges, rate, etag, tls
        self.headers: dict[str, object] = {}
        self.script: list[str] = []
        self.default = "good"
        self.requests: list[Request] = []
        self.sent = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._main = threading.Thread(target=self._accept, daemon=True)

    def url(self, path: str = "model.bin") -> str:
        """The address of a file on this server."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/{path}"

    def uri(self, path: str = "model.bin") -> str:
        """The same as a weight source."""
        return f"url:{self.url(path)}"

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()
        self.sent = 0

    def __enter__(self) -> Self:
        self._main.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in [self._main, *self._threads]:
            thread.join()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self.lock:
                self._threads = [*(t for t in self._threads if t.is_alive()), thread]
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError):
            connection = plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True)
            with connection:
                with self.lock:
                    self._open.add(connection)
                try:
                    self._converse(connection)
                finally:
                    with self.lock:
                        self._open.discard(connection)

    def _converse(self, connection: socket.socket) -> None:
        while not self.closing.is_set() and (request := _read_request(connection)) is not None:
            with self.lock:
                self.requests.append(request)
                name = self.script.pop(0) if self.script else self.default
            FAULTS[name](Exchange(self, connection, request))
            if name not in KEEPS:
                return


def _read_request(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (received := connection.recv(1 << 16)):
            return None
        data += received
    first, *lines = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split(" ")
    return Request(method, path, headers)


# --- what a request meets -------------------------------------------------------------------------


def good(exchange: Exchange) -> None:
    exchange.body(exchange.answer()[1])


def cut(exchange: Exchange) -> None:
    """The connection ends in the middle of the body, as if that were all."""
    data = exchange.answer()[1]
    exchange.body(data[: len(data) // 2])


def cut_at_10(exchange: Exchange) -> None:
    exchange.body(exchange.answer()[1][:10])


def reset(exchange: Exchange) -> None:
    """The connection is reset in the middle of the body."""
    data = exchange.answer()[1]
    exchange.body(data[: len(data) // 2])
    time.sleep(0.02)  # or the client's kernel throws away what it has not read yet
    exchange.reset()


def drop(exchange: Exchange) -> None:
    """The connection is reset before a byte of an answer."""
    exchange.reset()


def short(exchange: Exchange) -> None:
    """Half of the file, and headers that say so."""
    exchange.body(exchange.answer(exchange.server.body[: len(exchange.server.body) // 2])[1])


def wrong(exchange: Exchange) -> None:
    """Other bytes of the right length."""
    body = exchange.server.body
    exchange.body(exchange.answer(bytes([byte ^ 1 for byte in body[:1]]) + body[1:])[1])


def html(exchange: Exchange) -> None:
    """A page, as a captive portal sends it."""
    exchange.head(200, Content_Length=len(PAGE), Content_Type="text/html; charset=utf-8")
    exchange.body(PAGE)


def disguised_html(exchange: Exchange) -> None:
    """A page that is said to be the file."""
    exchange.head(200, Content_Length=len(PAGE), Content_Type="application/octet-stream")
    exchange.body(PAGE)


def stall(exchange: Exchange) -> None:
    """Nothing more comes after half of the body, and the connection stays open."""
    data = exchange.answer()[1]
    exchange.body(data[: len(data) // 2])
    exchange.server.closing.wait()


def hang(exchange: Exchange) -> None:
    """No answer at all."""
    exchange.server.closing.wait()


def drip(exchange: Exchange) -> None:
    """A byte now and then."""
    data = exchange.answer()[1]
    for index in range(len(data)):
        exchange.body(data[index : index + 1])
        if exchange.server.closing.wait(0.02):
            return


def ignored_range(exchange: Exchange) -> None:
    """The whole file, whatever was asked for."""
    server = exchange.server
    exchange.head(200, Content_Length=len(server.body), ETag=server.etag)
    exchange.body(server.body)


def misplaced_range(exchange: Exchange) -> None:
    """Another part than was asked for, and headers that say so."""
    body = exchange.server.body
    if exchange.request.span(len(body)) is None:
        return good(exchange)
    half = len(body) // 2
    exchange.head(
        206, Content_Length=len(body) - half, Content_Range=f"bytes {half}-{len(body) - 1}/{len(body)}"
    )
    return exchange.body(body[half:])


def lying_range(exchange: Exchange) -> None:
    """Another part than was asked for, and headers that deny it."""
    data = exchange.answer()[1]
    exchange.body(exchange.server.body[::-1][: len(data)])


def excessive_range(exchange: Exchange) -> None:
    """More than was asked for, in chunks."""
    body, span = exchange.server.body, exchange.request.span(len(exchange.server.body))
    if span is None:
        return good(exchange)
    content = f"bytes {span[0]}-{span[1] - 1}/{len(body)}"
    exchange.head(206, Transfer_Encoding="chunked", Content_Range=content, ETag=exchange.server.etag)
    return _chunks(exchange, [body, body])


def refused_range(exchange: Exchange) -> None:
    """A server that does not know what a range is."""
    if "range" not in exchange.request.headers:
        return good(exchange)
    return exchange.head(400, Content_Length=0)


def other_version(exchange: Exchange) -> None:
    """From now on the file is another one of the same size."""
    exchange.server.body, exchange.server.etag = exchange.server.body[::-1], '"v2"'
    good(exchange)


def other_tag(exchange: Exchange) -> None:
    """The same file under another ETag, as the next of several servers behind one name may call it."""
    exchange.server.etag = f'"{len(exchange.server.requests)}"'
    good(exchange)


def chunked(exchange: Exchange) -> None:
    """The whole file, in chunks, without a length."""
    body = exchange.server.body
    exchange.head(200, Transfer_Encoding="chunked")
    half = len(body) // 2
    _chunks(exchange, [body[:half], body[half:]])


def cut_chunked(exchange: Exchange) -> None:
    exchange.head(200, Transfer_Encoding="chunked")
    exchange.body(b"ffff\r\n" + exchange.server.body[:10])


def no_length(exchange: Exchange) -> None:
    """The whole file; its end is the end of the connection."""
    exchange.head(200)
    exchange.body(exchange.server.body)


def gzip(exchange: Exchange) -> None:
    """Encoded, although nobody asked for that."""
    import gzip as library

    exchange.body(exchange.answer(library.compress(exchange.server.body), Content_Encoding="gzip")[1])


def huge(exchange: Exchange) -> None:
    """A file of 10 TB."""
    exchange.head(200, Content_Length=10**13, ETag='"huge"')
    exchange.body(exchange.server.body)


def empty(exchange: Exchange) -> None:
    exchange.head(200, Content_Length=0, ETag='"none"')


def _chunks(exchange: Exchange, parts: list[bytes]) -> None:
    for part in [*filter(None, parts), b""]:
        exchange.body(f"{len(part):x}\r\n".encode() + part + b"\r\n")


def _status(status: int, **headers: object) -> Callable[[Exchange], None]:
    def fault(exchange: Exchange) -> None:
        exchange.head(status, Content_Length=0, **headers)

    return fault


def _redirect(where: Callable[[Exchange], str]) -> Callable[[Exchange], None]:
    def fault(exchange: Exchange) -> None:
        exchange.head(302, Content_Length=0, Location=where(exchange))

    return fault


FAULTS: dict[str, Callable[[Exchange], None]] = {
    **{
        fault.__name__.replace("_", " "): fault
        for fault in (
            *(good, cut, cut_at_10, reset, drop, short, wrong, html, disguised_html, stall, hang, drip),
            *(ignored_range, misplaced_range, lying_range, excessive_range, refused_range, other_version),
            other_tag,
            *(chunked, cut_chunked, no_length, gzip, huge, empty),
        )
    },
    **{str(status): _status(status) for status in (401, 403, 404, 410, 416, 500, 503)},
    "429": _status(429, Retry_After=0),
    "429 for an hour": _status(429, Retry_After=3600),
    "redirect": _redirect(lambda exchange: exchange.server.url("elsewhere")),
    "redirect loop": _redirect(lambda exchange: exchange.request.path),
    "redirect to http": _redirect(lambda exchange: "http://example.invalid/model.bin"),
    "redirect to https": _redirect(lambda exchange: f"https://127.0.0.1:{exchange.server.port}/model.bin"),
    "redirect to a file": _redirect(lambda exchange: "file:///etc/passwd"),
}
KEEPS = {name for name in FAULTS if name.startswith("redirect") or name.isdigit()} | {
    "good",
    "wrong",
    "ignored range",
    "chunked",
    "other version",
    "other tag",
}


# --- as a program ---------------------------------------------------------------------------------


def sample(size: int) -> bytes:
    """Return bytes of which no two MiB are alike."""
    block = random.Random(0).randbytes(1 << 20)
    parts = (index.to_bytes(8, "big") + block[8:] for index in range(-(-size // len(block))))
    return b"".join(parts)[:size]


def main(size: int, rate: float | None) -> None:
    """Serve until standard input ends."""
    with Loopback(sample(size), rate=rate) as server:
        FAULTS["good"] = lambda exchange: _serve_program(exchange)
        server.headers = {"X_Repo_Commit": "a" * 40, "Accept_Ranges": "bytes"}
        print(server.port, hashlib.sha256(server.body).hexdigest(), flush=True)
        sys.stdin.read()


def _serve_program(exchange: Exchange) -> None:
    server, path = exchange.server, exchange.request.path
    if path == "/stats":
        text = json.dumps({"sent": server.sent, "requests": len(server.requests) - 1}).encode()
        exchange.head(200, Content_Length=len(text))
        exchange.socket.sendall(text)
    elif path == "/reset":
        server.forget()
        exchange.head(200, Content_Length=0)
    else:
        exchange.body(exchange.answer()[1])


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)
