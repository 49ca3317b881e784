"""The hub client's own cache, read without the client: what is there already costs no import and no request.

::

    models--owner--name/blobs/<etag>               the bytes; a large file's sha256, a small one's git blob id
    models--owner--name/snapshots/<commit>/<path>  a link to a blob; the file itself where links cannot be had
    models--owner--name/refs/<branch or tag>       the commit that it was when it was asked for last

That layout is documented and shared with transformers and every other user of the client. Nothing is
written here. The client compares lengths and never content, and follows whatever link lies there; so a file
counts only if its real place is inside the cache and its bytes are those that are pinned, or, where
nothing is pinned, those that the blob is named after.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bundles.errors import CacheError, SourceAccessError
from bundles.sources.records import Known
from bundles.sources.verify import Verify, check_file, mismatch
from bundles.spec.hub import HubAddress, parse_hub
from bundles.spec.source import WeightSource

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


def hub_cache() -> Path:
    """Return the client's cache folder, as the client chooses it: ``HF_HUB_CACHE``, else in ``HF_HOME``."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not given:
        user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        given = os.path.join(os.environ.get("HF_HOME") or os.path.join(user, "huggingface"), "hub")
    return Path(os.path.expandvars(given)).expanduser()


def repository_folder(repo: str) -> Path:
    """Return the folder of a repository in the client's cache, which need not exist."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def cached_commit(address: HubAddress) -> str | None:
    """Return the commit that an address stands for, as far as can be told without a network."""
    if address.commit:
        return address.commit
    try:
        ref = repository_folder(address.repo) / "refs" / (address.revision or "main")
        text = ref.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if _COMMIT.fullmatch(text) else None


def snapshot_folder(address: HubAddress) -> Path | None:
    """Return the folder of the address's commit in the client's cache, if there is one."""
    commit = cached_commit(address)
    folder = repository_folder(address.repo) / "snapshots" / str(commit)
    return folder if commit and folder.is_dir() else None


def hub_places(source: WeightSource) -> Iterator[Path]:
    """Yield where the client keeps the file of an ``hf:`` source, if it has it.

    With a digest that is also the blob of that name, at whatever commit it came.
    """
    address = parse_hub(source.address)
    folder = snapshot_folder(address)
    if folder is not None and address.path and os.path.isfile(path := folder / address.path):
        yield path
    if source.sha256 and os.path.isfile(blob := repository_folder(address.repo) / "blobs" / source.sha256):
        yield blob


def is_moving(source: WeightSource) -> bool:
    """Whether an ``hf:`` source may give other bytes tomorrow: neither a commit nor a digest is known."""
    return source.sha256 is None and parse_hub(source.address).commit is None


def check_hub_file(path: Path, known: Known, verify: Verify = "once") -> None:
    """Check a file of the client's cache: where it really lies, its size and its bytes.

    Raises:
        SourceAccessError: it is a link out of the cache.
        ChecksumError: the bytes are not the pinned ones, or not those that their blob is named after.
        OSError: it cannot be read.
    """
    check_inside(path, known.source)
    check_file(path, known, verify)
    if known.source.sha256 is None and verify != "off" and (etag := blob_name(path)):
        check_etag(path, etag, known, verify)


def blob_name(path: Path) -> str | None:
    """Return the name of the blob that a file of a snapshot is a link to; ``None`` where it is none.

    Only the first link counts: a blob may itself be one, to a store that repositories share and that names
    files in another way.
    """
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    return blob.name if blob.parent.name == "blobs" else None


def check_inside(path: Path, source: WeightSource) -> None:
    """Refuse a link that leads out of the client's cache, as somebody may have planted there, and no file.

    Raises:
        SourceAccessError: it leads out.
        CacheError: it is a folder or something else that is no file.
    """
    if not path.resolve().is_relative_to(hub_cache().resolve()):
        raise SourceAccessError(
            f"The file {path} of {source.shown} is a link out of the cache {hub_cache()}, to "
            f"{path.resolve()}: it is not used; delete it and fetch again."
        )
    if not path.is_file():
        raise CacheError(f"What is at {path}, for {source.shown}, is no file: delete it and fetch again.")


def check_etag(path: Path, etag: str, known: Known, verify: Verify = "once") -> None:
    """Check a file against what the Hub calls it: a sha256, or git's id of a blob. Other names say nothing.

    Raises:
        ChecksumError: they differ.
    """
    if _SHA256.fullmatch(etag):
        claimed = Known(replace(known.source, sha256=etag), is_claimed=True)
        check_file(path, claimed, verify)
    elif _SHA1.fullmatch(etag) and (found := git_blob_id(path)) != etag:
        expected = f"git blob {etag}"
        raise mismatch(path, Known(known.source, is_claimed=True), expected, f"git blob {found}")


def git_blob_id(path: Path) -> str:
    """Return the name that git gives to a file's content, as the Hub does with small files."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
