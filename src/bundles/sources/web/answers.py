"""What an HTTP answer means for a download: decided from its status and headers alone."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bundles.errors import BundlesError, DownloadError, SourceAccessError, SourceNotFoundError
from bundles.sources.web.partial import Version

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_NO_RANGES = (400, 405, 416, 501)  # said to a range by servers that do not know what one is


class OtherVersionError(DownloadError):
    """What was received so far cannot be continued: the file is another one now."""


class UnusableRangesError(OtherVersionError):
    """The server's parts of the file cannot be put together; only the whole of it will do."""


@dataclass(frozen=True)
class Answer:
    """The body that an answer brings.

    Args:
        version: of the file.
        start: position of its first byte in the file.
        length: its length, or ``None`` if only its end will tell.
        is_framed: whether a body that is cut off is noticed.
    """

    version: Version
    start: int
    length: int | None
    is_framed: bool

    @property
    def is_whole(self) -> bool:
        """Whether it brings the file from its first byte to its last."""
        return self.start == 0 and self.length == self.version.total


def read_answer(status: int, headers: Mapping[str, str], asked: tuple[int, int] | None, name: str) -> Answer:
    """Return what the body of an answer is.

    Args:
        status: of HTTP.
        headers: with names in any case, as the client gives them.
        asked: the range that was asked for; ``None`` for the whole file.
        name: what was asked, for messages.

    Raises:
        SourceNotFoundError, SourceAccessError: asking again would not help.
        UnusableRangesError: ask for the whole file instead.
        DownloadError: asking again might help; ``retry_after`` says when, if the server did.
    """
    if status not in (200, 206):
        raise _refusal(status, headers, asked, name)
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise DownloadError(f"it answers with the bytes encoded as {encoding!r}, which was not asked for")
    if status == 200:
        length = _length(headers)
        is_framed = length is not None or "chunked" in headers.get("Transfer-Encoding", "").lower()
        return Answer(Version(length, _tag(headers)), 0, length, is_framed)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if asked is None or match is None:
        raise UnusableRangesError("it answers with a part of the file and does not say which")
    start, last, total = map(int, match.groups())
    if start != asked[0] or not start <= last < min(asked[1], total):
        raise UnusableRangesError(
            f"it answers with the bytes {start}-{last} of {total}; {asked[0]}-{asked[1] - 1} were asked for"
        )
    return Answer(Version(total, _tag(headers), ranged=True), start, last - start + 1, is_framed=True)


def _refusal(
    status: int, headers: Mapping[str, str], asked: tuple[int, int] | None, name: str
) -> BundlesError:
    if status in (404, 410):
        return SourceNotFoundError(f"There is nothing at {name} (HTTP {status}): check the address.")
    if status in (401, 403):
        return SourceAccessError(
            f"{name} may not be read (HTTP {status}): it needs a permission that this address does not give."
        )
    if asked is not None and status in _NO_RANGES:
        return UnusableRangesError(f"it refuses to send a part of the file (HTTP {status})")
    after = _retry_after(headers)
    until = f" and asks to come back in {after:.0f} s" if after else ""
    return DownloadError(f"it answers with HTTP {status}{until}", retry_after=after)


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None


def _tag(headers: Mapping[str, str]) -> str | None:
    """What tells this version from every other: not a weak ETag, which stands for similar ones too."""
    for tag, form in (("ETag", r'"[!#-~]{1,200}"'), ("Last-Modified", r"[ -~]{1,99}")):
        if re.fullmatch(form, found := headers.get(tag, "")):
            return found
    return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,6}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None
