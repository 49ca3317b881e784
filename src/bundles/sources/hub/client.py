"""The Hugging Face Hub, by its own client: the only file that imports ``huggingface_hub``.

What the client raises becomes one of our errors here, with its cause. Everything that is done about errors
is done elsewhere (``attempts``, ``download``), and so is every check of what the client brings:
it compares lengths, never content.

Tested with huggingface_hub 2.4.0 and 1.31.0. What differs between them is the HTTP library, of which nothing
is imported: its errors have no base in common with ours, and whatever is not known may pass.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.errors import (
    BundlesError,
    CacheError,
    DownloadError,
    OfflineError,
    SourceAccessError,
    SourceNotFoundError,
)
from bundles.sources.hub.cache import hub_cache
from bundles.sources.progress import Tell
from bundles.spec.hub import HubAddress
from bundles.spec.source import hidden, is_loopback
from bundles.spec.values import shown

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

_ETAG = re.compile(r"[A-Za-z0-9._-]{1,128}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_LIBRARY = "bundles"


@dataclass(frozen=True)
class FileFacts:
    """What the Hub says of a file before it sends it.

    Args:
        commit: that the revision stands for now.
        etag: the sha256 of a large file, git's blob id of a small one.
        size: in bytes, if it says so.
    """

    commit: str
    etag: str
    size: int | None


def endpoint() -> str:
    """Return the address of the Hub, ``HF_ENDPOINT`` if that is set; the client reads it only once.

    Raises:
        SourceAccessError: what is set is no address, so that asking again would not help.
    """
    given = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not given.startswith(("https://", "http://")):
        raise SourceAccessError(
            f"HF_ENDPOINT={shown(given)} is no address of a Hub: give one as 'https://huggingface.co'."
        )
    return given.rstrip("/")


def file_facts(address: HubAddress, timeout: float) -> FileFacts:
    """Ask what a file is, without its bytes.

    Raises:
        SourceNotFoundError, SourceAccessError, OfflineError: asking again would not help.
        DownloadError: it might.
    """
    with _translated(address):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(address.repo, str(address.path), revision=address.revision, endpoint=endpoint())
        found = get_hf_file_metadata(url, timeout=timeout, library_name=_LIBRARY)
        if found.commit_hash is None or not _COMMIT.fullmatch(found.commit_hash):
            raise DownloadError(f"{endpoint()} answers without a commit, as no Hub does")
        if found.etag is None or not _ETAG.fullmatch(found.etag) or ".." in found.etag:
            raise DownloadError(f"{endpoint()} answers with the ETag {shown(found.etag)}, which is none")
        _check_place(found.location)
        return FileFacts(found.commit_hash, found.etag, found.size)


def bring(
    address: HubAddress, *, force: bool, timeout: float, tell: Tell, is_stopped: Callable[[], bool]
) -> Path:
    """Let the client bring a file into its cache and return its path there, unchecked.

    Args:
        address: of the file.
        force: bring it also if something of that name is there.
        timeout: seconds for an answer about the file.
        tell: is told what is there.
        is_stopped: whether nobody wants it any more.

    Raises:
        SourceNotFoundError, SourceAccessError, OfflineError, CacheError: trying again would not help.
        DownloadError: it might.
    """
    with _translated(address):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            address.repo,
            str(address.path),
            revision=address.revision,
            cache_dir=hub_cache(),
            force_download=force,
            etag_timeout=timeout,
            endpoint=endpoint(),
            library_name=_LIBRARY,
            tqdm_class=_bar(tell, is_stopped),
        )
        return Path(path)


def repository_facts(address: HubAddress, timeout: float) -> dict[str, Any]:
    """Ask for a repository's listing and what is said about it; unchecked.

    Returns:
        ``commit``, ``files`` (path, size, sha256, git blob id), ``license``, ``gated``, ``tags``,
        ``pipeline_tag`` and ``library_name``.

    Raises:
        SourceNotFoundError, SourceAccessError, OfflineError: asking again would not help.
        DownloadError: it might.
    """
    with _translated(address):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), library_name=_LIBRARY)
        info = api.model_info(address.repo, revision=address.revision, files_metadata=True, timeout=timeout)
        card = info.card_data
        return {
            "commit": info.sha,
            "files": [
                [file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id]
                for file in info.siblings or ()
            ],
            "license": card.get("license") if card is not None else None,
            "gated": info.gated or False,
            "tags": list(info.tags or ()),
            "pipeline_tag": info.pipeline_tag,
            "library_name": info.library_name,
        }


def commits(address: HubAddress) -> list[str]:
    """Return the commits of a branch, the last first; unchecked.

    Raises:
        SourceNotFoundError, SourceAccessError, OfflineError: asking again would not help.
        DownloadError: it might.
    """
    with _translated(address):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), library_name=_LIBRARY)
        return [found.commit_id for found in api.list_repo_commits(address.repo, revision=address.revision)]


def upload_folder(repo: str, folder: Path, *, message: str, private: bool) -> str:
    """Put the files of a folder into a model repository, in one commit; the repository is made if absent.

    Args:
        repo: ``owner/name``.
        folder: on this machine, taken with everything in it.
        message: of the commit.
        private: whether a repository that is made now is private.

    Returns:
        The commit.

    Raises:
        SourceAccessError: nobody is logged in, or may not write there.
        OfflineError, DownloadError: the Hub cannot be reached, or does not take it.
    """
    try:
        with _translated(HubAddress(repo)):
            from huggingface_hub import HfApi

            api = HfApi(endpoint=endpoint(), library_name=_LIBRARY)
            api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=message, repo_type="model"
            )
            return str(done.oid)
    except DownloadError as error:
        raise DownloadError(
            f"The folder {folder} cannot be put on hf:{repo} ({error}): try again."
        ) from error


def _bar(tell: Tell, is_stopped: Callable[[], bool]) -> type[tqdm]:
    """Return a progress bar that shows nothing, tells how far it is, and ends what nobody wants any more."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            self._there, self._size = settings.get("initial") or 0, settings.get("total")
            super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self._there += int(n or 0)
            if is_stopped():
                raise DownloadError("it was stopped")
            if self._size is not None and self._there > self._size:
                raise DownloadError(f"it sends more than the {self._size} bytes that were to come")
            tell(self._there, self._size)
            return None

    return Bar


def _check_place(location: str) -> None:
    """Refuse places that nobody should be sent to: in the clear, or not on the web."""
    mine = endpoint()
    is_here = is_loopback(f"{mine}/") and is_loopback(location)
    if not (location.startswith(("https://", f"{mine}/")) or is_here):
        raise DownloadError(f"{mine} redirects to {hidden(location)}, and only https is followed")


# --- errors -----------------------------------------------------------------------------------------


@contextmanager
def _translated(address: HubAddress) -> Iterator[None]:
    """Turn what the client raises into our errors; it raises anything, of three libraries."""
    try:
        yield
    except BundlesError:
        raise
    except Exception as error:
        raise _ours(_reason(error), address) from error


def _reason(error: BaseException) -> BaseException:
    """Return what lies behind the client's "check your connection", "force download failed" and the like."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error.__cause__ is not None and isinstance(
        error, LocalEntryNotFoundError | ValueError | RuntimeError
    ):
        if isinstance(error, OSError) and getattr(error, "response", None) is not None:
            break
        error = error.__cause__
    return error


def _ours(error: BaseException, address: HubAddress) -> BundlesError:
    from huggingface_hub import errors as theirs

    repo, where = address.repo, endpoint()
    match error:
        case theirs.GatedRepoError():
            return SourceAccessError(
                f"{address.uri} is gated: accept its terms at {where}/{repo}, then log in by `hf auth login` "
                f"or set HF_TOKEN."
            )
        case theirs.DisabledRepoError():
            return SourceAccessError(
                f"The repository {repo} was disabled by {where}: nobody gets files of it."
            )
        case theirs.RepositoryNotFoundError():
            return SourceNotFoundError(
                f"There is no repository {repo} on {where}, or it is private, so {address.uri} cannot be "
                f"had: check the name, or log in by `hf auth login` or set HF_TOKEN."
            )
        case theirs.RevisionNotFoundError():
            return SourceNotFoundError(
                f"The repository {repo} on {where} has no revision {address.revision or 'main'}: check it; "
                f"the history may have been rewritten."
            )
        case theirs.LocalEntryNotFoundError():
            return DownloadError(f"{where} cannot be reached: {_told(error)}")
        case theirs.EntryNotFoundError():
            return SourceNotFoundError(
                f"The repository {repo} on {where} has no file {address.path} at "
                f"{address.revision or 'main'}: check the path."
            )
        case theirs.OfflineModeIsEnabled():
            return OfflineError(
                f"{address.uri} is not in the cache {hub_cache()} and HF_HUB_OFFLINE is set: fetch it once "
                f"with a network."
            )
        case theirs.HfHubHTTPError() if error.response is not None:
            return _of_status(error.response, address)
        case OSError() if error.errno in _FULL:
            return CacheError(
                f"The cache folder {hub_cache()} cannot be written ({error.strerror}): free some room, or "
                f"set HF_HUB_CACHE to a folder that can."
            )
    return DownloadError(f"{where} does not give it ({_told(error)})")


def _of_status(response: Any, address: HubAddress) -> BundlesError:
    status, where = response.status_code, endpoint()
    if not str(response.url).startswith(f"{where}/"):  # a signed address is good for a while only
        return DownloadError(f"the place to which {where} redirects answers with HTTP {status}")
    if status in (401, 403):
        return SourceAccessError(
            f"{where} does not allow that with {address.uri} (HTTP {status}): log in by `hf auth login` or "
            f"set HF_TOKEN to a token with that permission."
        )
    if status in (404, 410):
        return SourceNotFoundError(f"There is nothing at {address.uri} on {where} (HTTP {status}): check it.")
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if re.fullmatch(r"\d{1,6}", after) else None
    return DownloadError(f"{where} answers with HTTP {status}", retry_after=seconds)


def _told(error: BaseException) -> str:
    """What a foreign error says, in one line, without what a signed address asks after ``?``."""
    told = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1?…", " ".join(str(error).split()))
    return f"{type(error).__name__}: {told[:200]}"
