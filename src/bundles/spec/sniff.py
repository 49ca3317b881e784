"""Say what a file is by its first bytes, whatever its name says."""

from __future__ import annotations

from pathlib import Path

_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to (type `git lfs pull`)"),
    (b"\x80", "a pickle"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"{", "JSON text"),
)


def describe_file(path: Path) -> str:
    """Return a few words for people: ``"an HTML page"``, ``"a pickle"``, ``"empty"``, ...

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = pathlib.Path(folder, "model.safetensors")
    ...     _ = page.write_text("<!DOCTYPE html><title>502</title>")
    ...     describe_file(page)
    'an HTML page'
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty"
    if is_safetensors(path):
        return "a safetensors file"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "an HTML page"
    if head.startswith(b"<?xml"):
        return "an XML document, perhaps a server's error message"
    return next((words for magic, words in _MAGIC if head.startswith(magic)), "of no known format")


def is_safetensors(path: Path) -> bool:
    """Whether the file opens as safetensors does: a header length that fits, then ``{``."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8
