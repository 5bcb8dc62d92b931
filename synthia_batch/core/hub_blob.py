"""Files in the cache of the Hugging Face Hub, each named after the digest of its content.

Large files are named after their SHA-256, others after git's SHA-1 of them; mirrors may name those after
the SHA-1 of the content alone.
"""

import hashlib
import logging
from pathlib import Path

from synthia_batch.core.digest import DigestCache, digest_file, read_stamp

_log = logging.getLogger(__name__)

SHA256_DIGITS, SHA1_DIGITS = 64, 40
LARGE_BYTES = 10**9
"""From this size on, reading a file takes seconds, and is announced."""


def find_blob(file: Path) -> Path | None:
    """Return the blob that `file` of the Hub's cache links to, None for any other file."""
    blob = file.resolve()
    is_digest = len(blob.name) in (SHA256_DIGITS, SHA1_DIGITS) and set(blob.name) <= set("0123456789abcdef")
    return blob if file.is_symlink() and blob.parent.name == "blobs" and is_digest else None


def find_blob_damage(file: Path, cache: DigestCache) -> str | None:
    """Return what is wrong with `file` and what to do, None if it is as its blob's name says, or no blob.

    A large file is read once for each stamp.
    """
    blob = find_blob(file)
    if blob is None or _is_sound(blob, cache):
        return None
    return f"{file.name} is damaged in the Hub's cache; remove {blob}, and run again to download it anew"


def _is_sound(blob: Path, cache: DigestCache) -> bool:
    size = blob.stat().st_size
    if len(blob.name) == SHA1_DIGITS:
        content = blob.read_bytes()
        heads = (b"blob %d\0" % size, b"")
        return any(hashlib.sha1(head + content).hexdigest() == blob.name for head in heads)
    if size >= LARGE_BYTES and cache.find(blob, read_stamp(blob), "sha256") is None:
        _log.info(
            f"{blob}: checking {size / 1e9:.1f} GB against their digest; a later run does not repeat it"
        )
    return digest_file(blob, cache, "sha256") == blob.name
