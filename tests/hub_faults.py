"""What a request to the loopback hub can meet instead of a good answer: one small function each, by name."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub import _Handler as Exchange

PAGE = b"<!DOCTYPE html><html><title>Sign in</title>" + b"<p>Accept the terms.</p>" * 20


def _data(exchange: Exchange) -> bytes:
    file = exchange.file()
    return b"" if file is None else file.data


def _head(exchange: Exchange, **more: object) -> bytes:
    """Send the head of a good answer for the whole file and return the file."""
    file = exchange.file()
    if file is None:
        exchange.good()
        return b""
    exchange.head(200, {"Content-Length": len(file.data), **exchange.body_headers(file), **more})
    return file.data


def truncate(exchange: Exchange, at: float | int = 0.5) -> None:
    """The connection ends in the middle of the body, as if that were all."""
    data = _head(exchange)
    exchange.wfile.write(data[: at if isinstance(at, int) else int(len(data) * at)])
    exchange.cut()


def short(exchange: Exchange) -> None:
    """Half of the file, and headers that say so."""
    data = _data(exchange)
    exchange.answer(200, data[: len(data) // 2])


def corrupt(exchange: Exchange) -> None:
    """One wrong bit, right length."""
    data = bytearray(_data(exchange))
    if data:
        data[len(data) // 2] ^= 1
    exchange.answer(200, bytes(data))


def corrupt_all(exchange: Exchange) -> None:
    """Other bytes of the right length."""
    exchange.answer(200, bytes(byte ^ 0x55 for byte in _data(exchange)))


def reset(exchange: Exchange) -> None:
    """The connection is reset in the middle of the body."""
    data = _head(exchange)
    exchange.wfile.write(data[: len(data) // 2])
    exchange.wfile.flush()
    time.sleep(0.02)  # or the client's kernel throws away what it has not read yet
    exchange.reset()


def drop(exchange: Exchange) -> None:
    """The connection is reset before a byte of an answer."""
    exchange.reset()


def stall(exchange: Exchange) -> None:
    """Nothing more comes after half of the body, and the connection stays open."""
    data = _head(exchange)
    exchange.wfile.write(data[: len(data) // 2])
    exchange.wfile.flush()
    hang(exchange)


def hang(exchange: Exchange) -> None:
    """No answer at all."""
    exchange.hub.closing.wait()
    exchange.cut()


def slow(exchange: Exchange, pause: float = 0.02) -> None:
    """A byte now and then."""
    data = _head(exchange)
    for index in range(len(data)):
        exchange.wfile.write(data[index : index + 1])
        exchange.wfile.flush()
        if exchange.hub.closing.wait(pause):
            break
    exchange.cut()


def status(exchange: Exchange, code: int = 503, **headers: object) -> None:
    exchange.answer(code, b"", {name.replace("_", "-"): value for name, value in headers.items()})


def ratelimit(exchange: Exchange, seconds: int = 1) -> None:
    exchange.answer(429, b"", {"RateLimit": f'"resolvers";r=0;t={seconds}', "Retry-After": seconds})


def not_found(exchange: Exchange) -> None:
    exchange.error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": "a" * 40})


def repo_not_found(exchange: Exchange) -> None:
    exchange.error(401, "RepoNotFound", "Repository not found")


def revision_not_found(exchange: Exchange) -> None:
    exchange.error(404, "RevisionNotFound", "Invalid rev id")


def gated(exchange: Exchange) -> None:
    exchange.error(403, "GatedRepo", "Access to this model is restricted.")


def disabled(exchange: Exchange) -> None:
    exchange.error(403, "", "Access to this resource is disabled.")


def captive(exchange: Exchange) -> None:
    """A page, as a captive portal sends it."""
    exchange.answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})


def no_commit(exchange: Exchange) -> None:
    exchange.good({"X-Repo-Commit": None})


def no_etag(exchange: Exchange) -> None:
    exchange.good({"ETag": None, "X-Linked-Etag": None})


def no_size(exchange: Exchange) -> None:
    """Nobody says how long the file is; its end is the end of the connection."""
    if exchange.command == "HEAD":
        exchange.good({"Content-Length": None, "X-Linked-Size": None})
    else:
        exchange.good({"Content-Length": None})
    exchange.cut()


def etag(exchange: Exchange, value: str = '"../../x"') -> None:
    """An ETag that is none."""
    exchange.good({"ETag": value, "X-Linked-Etag": value})


def commit(exchange: Exchange, value: str = "../../x") -> None:
    """A commit that is none."""
    exchange.good({"X-Repo-Commit": value})


def size(exchange: Exchange, value: int = 10**13) -> None:
    """A file of 10 TB."""
    name = "X-Linked-Size" if exchange.command == "HEAD" and _is_large(exchange) else "Content-Length"
    exchange.good({name: value})


def ignore_range(exchange: Exchange) -> None:
    """The whole file, whatever was asked for."""
    exchange.answer(200, _data(exchange))


def bad_range(exchange: Exchange) -> None:
    """Another part than was asked for, and headers that deny it."""
    if "Range" not in exchange.headers:
        return truncate(exchange)
    start = int(exchange.headers["Range"].removeprefix("bytes=").partition("-")[0])
    data = _data(exchange)
    return exchange.answer(
        206, data[: len(data) - start], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    )


def redirect_loop(exchange: Exchange) -> None:
    exchange.answer(302, b"", {"Location": exchange.path})


def redirect_off(exchange: Exchange, to: str = "http://example.invalid/model") -> None:
    """A redirect to somewhere that nobody should follow."""
    exchange.good({"Location": to}) if _is_large(exchange) else exchange.answer(302, b"", {"Location": to})


def encoded(exchange: Exchange, size: int = 0) -> None:
    """Encoded as gzip; with ``size`` a bomb of so many zeros."""
    body = gzip.compress(bytes(size) if size else _data(exchange))
    exchange.answer(200, body, {"Content-Encoding": "gzip"})


def bad_json(exchange: Exchange, body: bytes = b'{"id": ') -> None:
    exchange.answer(200, body, {"Content-Type": "application/json"})


def evil_tree(exchange: Exchange, paths: tuple[str, ...] = ("../../x",), **info: Any) -> None:
    """A listing with other names in it."""
    siblings = [{"rfilename": path, "size": 1, "blobId": "0" * 40} for path in paths]
    told = {"id": "owner/name", "sha": "a" * 40, "private": False, "tags": [], "siblings": siblings}
    exchange.json({**told, **info})


def _is_large(exchange: Exchange) -> bool:
    file = exchange.file()
    return file is not None and file.is_lfs


BODY, HEAD, ANY = {"body"}, {"head"}, {"head", "body", "api", "upload"}

FAULTS: dict[str, Callable[..., None]] = {
    fault.__name__: fault
    for fault in (
        *(truncate, short, corrupt, corrupt_all, reset, drop, stall, hang, slow, status, ratelimit),
        *(not_found, repo_not_found, revision_not_found, gated, disabled, captive),
        *(no_commit, no_etag, no_size, etag, commit, size, ignore_range, bad_range),
        *(redirect_loop, redirect_off, encoded, bad_json, evil_tree),
    )
}
KINDS = {
    **dict.fromkeys(FAULTS, BODY),
    **dict.fromkeys(("no_commit", "no_etag", "etag", "commit", "redirect_off"), HEAD),
    **dict.fromkeys(("not_found", "repo_not_found", "revision_not_found", "gated", "disabled"), ANY),
    "no_size": {"head", "body"},
    "size": HEAD,
    "redirect_loop": {"head", "body"},
    "bad_json": {"api"},
    "evil_tree": {"api"},
}
