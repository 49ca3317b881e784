"""Which address is really asked: mirrors, and what may travel without TLS."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bundles.errors import DownloadError, SourceAccessError
from bundles.spec.source import WeightSource, hidden, is_loopback, url_problem
from bundles.spec.values import shown


def asked_url(source: WeightSource) -> str:
    """Return the URL that a ``url:`` source is downloaded from.

    That is its address, or the place that ``BUNDLES_MIRROR`` gives for it. The cache knows the source by
    its own address either way.

    Raises:
        SourceAccessError: it would come in the clear, from elsewhere than this machine or a mirror that
            somebody chose, and no digest would tell whether somebody changed it on the way.
        DownloadError: ``BUNDLES_MIRROR`` is malformed.
    """
    url = mirrored(source.address)
    chosen = url != source.address or is_loopback(url) or source.sha256 is not None
    if url.startswith("http:") and not chosen:
        raise SourceAccessError(
            f"{source.shown} is plain http and has no sha256, so nobody could tell what arrives: use "
            f"https, or pin the digest."
        )
    return url


def mirrored(url: str) -> str:
    """Return where ``BUNDLES_MIRROR`` sends a URL: the longest prefix that fits is replaced.

    With ``https://download.pytorch.org=http://mirror.lan/pytorch``, the file
    ``https://download.pytorch.org/torchaudio/models/hubert.pth`` is asked for at
    ``http://mirror.lan/pytorch/torchaudio/models/hubert.pth``. A prefix ends where a part of the path
    ends: ``https://example.org/a`` does not fit ``https://example.org/ab``.

    Raises:
        DownloadError: ``BUNDLES_MIRROR`` is malformed.
    """
    pairs = sorted(_pairs(os.environ.get("BUNDLES_MIRROR", "")), key=lambda pair: -len(pair[0]))
    for prefix, place in pairs:
        rest = url.removeprefix(prefix)
        if rest != url and (not rest or rest[0] in "/?"):
            return place + rest
    return url


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for pair in filter(None, (part.strip() for part in text.split(","))):
        prefix, _, place = (part.strip() for part in pair.partition("="))
        for part in (prefix, place):
            if problem := url_problem(part.rstrip("/") + "/"):
                raise DownloadError(
                    f"BUNDLES_MIRROR is malformed: {shown(hidden(pair))} does not read 'FROM=TO' with two "
                    f"addresses, as 'https://download.pytorch.org=https://mirror.example.org/pytorch' "
                    f"({problem})."
                )
        yield prefix.rstrip("/"), place.rstrip("/")
