"""The HTTP client: ``httpx2``, as the hub client brings it, with the rules of this package."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bundles.errors import DownloadError
from bundles.sources.options import Options
from bundles.spec.source import hidden, is_loopback

if TYPE_CHECKING:
    import ssl

    import httpx2

_LARGE = 1 << 20


def open_client(url: str, options: Options) -> httpx2.Client:
    """Return a client for one download; proxies and certificates are those of the environment.

    Args:
        url: that is going to be asked; it decides which redirects are followed.
        options: of the download.
    """
    import httpx2

    return httpx2.Client(
        verify=_certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
        headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "bundles (python, httpx2)"},
        timeout=httpx2.Timeout(options.read_timeout, connect=options.connect_timeout),
        follow_redirects=True,
        max_redirects=10,
        event_hooks={"request": [_guard(url)]},
    )


def body(answer: httpx2.Response, *, direct: bool) -> Iterator[bytes]:
    """Yield the bytes of an answer as they come.

    Args:
        answer: whose body was not read yet.
        direct: whether to read the connection in large pieces once the client has read the headers. The
            client hands out 64 KiB at a time and copies each piece three times, which is half of what a
            fast link costs (``benchmarks/download.py``). Such a connection is closed afterwards, so
            this is for long answers.
    """
    pieces = answer.iter_raw()
    if not direct or "Content-Length" not in answer.headers or "Transfer-Encoding" in answer.headers:
        yield from pieces
        return
    length, stream = int(answer.headers["Content-Length"]), answer.extensions["network_stream"]
    timeout = answer.request.extensions["timeout"]["read"]
    yield (piece := next(pieces))  # what came along with the headers
    length -= len(piece)
    while length:
        piece = stream.read(min(_LARGE, length), timeout)
        if not piece:
            raise DownloadError(f"the connection was closed {length} bytes too early")
        length -= len(piece)
        yield piece


@functools.cache
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Return what TLS trusts; reading it takes longer than a small download. The arguments are the key."""
    import httpx2

    return httpx2.create_ssl_context()


def _guard(url: str) -> Callable[[httpx2.Request], None]:
    """Return a check of every address that is asked, those that a server redirects to included."""
    import httpx2

    def check(request: httpx2.Request) -> None:
        asked, first = request.url, httpx2.URL(url)
        is_same = (asked.scheme, asked.host, asked.port) == (first.scheme, first.host, first.port)
        is_here = first.scheme == asked.scheme == "http" and is_loopback(url) and is_loopback(str(asked))
        if not (is_same or is_here or asked.scheme == "https"):
            raise DownloadError(
                f"it redirects to {hidden(str(asked))}, and only https is followed: nobody could tell what "
                f"arrives in the clear"
            )

    return check
