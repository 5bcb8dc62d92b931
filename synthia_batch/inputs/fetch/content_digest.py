"""Digests of an input's content, for the identity of a job."""

from collections.abc import Sequence
from dataclasses import replace

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import InputFile
from synthia_batch.inputs.fetch.stamps import read_stamps, refuse_changed


def digest_contents(files: Sequence[InputFile], cache: DigestCache) -> tuple[InputFile, ...]:
    """Return the files with the digest of each one's content.

    Raises:
        InputRefused: One has changed since `resolve_inputs`.
        UsageError: One cannot be read.
    """
    digested = []
    for file in files:
        content = digest_file(file.path, cache)
        if read_stamps([file.path], file.shown)[file.path] != file.stamp:
            raise refuse_changed(file.shown)
        digested.append(replace(file, content=content))
    return tuple(digested)


def digest_files(files: Sequence[InputFile]) -> str:
    """Return the digest of the files' content for a job's identity, independent of names and places.

    For one file it is the digest of its content, compressed or not; for several, of all theirs in order.
    The files are those that `digest_contents` returns.
    """
    digests = [_get_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else digest_json(["files", *digests])


def check_digest(files: Sequence[InputFile], wanted: str | None) -> None:
    """Raise UsageError if the digested `files` have another digest than the one that is `wanted`."""
    found = digest_files(files)
    if wanted is not None and found != wanted:
        raise UsageError(
            f"--input-digest: expected an input with the digest {wanted}, got {found}; "
            "name the right input, or leave the digest out"
        )


def _get_digest(file: InputFile) -> str:
    digest = file.digest or file.content
    if digest is None:
        raise ValueError(f"{file.shown}: its content is not digested")
    return digest
