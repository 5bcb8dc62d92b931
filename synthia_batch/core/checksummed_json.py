"""JSON files that carry their own digest: readable by people, verifiable by the run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.core.digest import canonical_json
from synthia_batch.core.errors import IntegrityError

_DIGEST = "digest"


def digest_of(value: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of the canonical JSON text of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def encode_checksummed(value: Mapping[str, Any]) -> bytes:
    """Return `value` as an indented JSON file in its own order of keys, with its digest last.

    Raises:
        ValueError: As for digest_of, or `value` has a key "digest".
        TypeError: As for digest_of.
    """
    if _DIGEST in value:
        raise ValueError(f"expected no key {_DIGEST!r}: checksummed JSON reserves it")
    checksummed = {**value, _DIGEST: digest_of(value)}
    return (json.dumps(checksummed, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def read_checksummed(path: Path) -> dict[str, Any] | None:
    """Return the value in `path` without its digest, or None if there is no such file.

    Raises:
        IntegrityError: The file cannot be read, or its digest does not match.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):  # the latter: a parent in its path is a file
        return None
    except (OSError, ValueError) as exc:
        raise IntegrityError(
            f"{path} cannot be read: {exc}\n  run `synthia-batch verify DIR` to see how to fix it"
        ) from exc
    return _open(value, str(path))


def decode_checksummed(content: bytes, name: str) -> dict[str, Any]:
    """Return the value in `content` without its digest. `name` is for error messages.

    Raises:
        IntegrityError: It is not JSON, or its digest does not match.
    """
    try:
        value = json.loads(content)
    except ValueError as exc:
        raise IntegrityError(f"{name} cannot be read: {exc}") from exc
    return _open(value, name)


def _open(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.pop(_DIGEST, None) != digest_of(value):
        raise IntegrityError(
            f"{name} was altered: its content does not match its digest\n"
            "  run `synthia-batch verify DIR` to see how to fix it"
        )
    return value
