"""From one word of the command line to the files that it means.

take_in(): all that a job names as its input, found, and made plain where it is not.
"""

import glob
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.digest import DigestCache, digest_file, digest_json, open_digest_cache
from synthia_batch.core.types import InputFile
from synthia_batch.errors import UsageError
from synthia_batch.inputs.fetch.cache import is_copy
from synthia_batch.inputs.fetch.datasets_dir import normalize_dataset, refuse_splits
from synthia_batch.inputs.fetch.file_types import IN_DIRECTORIES, LocatedFile, split_name
from synthia_batch.inputs.fetch.normalize import NormalizedFile, normalize_file
from synthia_batch.inputs.fetch.stdin import STDIN, STDIN_NAME, keep_stdin, refuse_lost
from synthia_batch.inputs.readers.open import FORMATS

HUB_PREFIX = "hf://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(said: str) -> bool:
    """Say whether it names something that is not on this machine."""
    return _URL.match(said) is not None


def is_dataset(path: Path) -> bool:
    """Say whether `path` is a directory that datasets' save_to_disk has written."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def find_files(said: str, *, makes: bool = True) -> list[LocatedFile]:
    """Return the files of rows that `said` names: a file, a directory, a pattern or an address.

    Raises:
        UsageError: There are none, or they are not to be had.
    """
    if said.startswith(HUB_PREFIX):
        from synthia_batch.inputs.remote.hub import fetch_dataset

        return fetch_dataset(said, makes=makes)
    if is_url(said):
        from synthia_batch.inputs.remote.fetch import fetch_remote

        return fetch_remote(said, makes=makes)
    path = Path(said)
    if is_copy(path):
        if not path.exists():
            raise refuse_lost(path)
        return [LocatedFile(path=path, shown=STDIN_NAME, guesses=True)]
    try:
        if path.is_dir():
            return _find_in_directory(path)
        if not path.exists() and glob.has_magic(said):
            return _find_by_pattern(said)
    except ValueError as exc:
        raise UsageError(f"{said!r}: is not a path: {exc}") from exc
    return [LocatedFile(path=path, shown=path)]


def _find_in_directory(directory: Path) -> list[LocatedFile]:
    if is_dataset(directory):
        return [LocatedFile(path=directory, shown=directory)]
    refuse_splits(directory)
    found = [LocatedFile(path=path, shown=path) for path in sorted(list_rows(directory), key=str)]
    if not found:
        raise UsageError(f"{directory}: is a directory without files of rows; {FORMATS}")
    return found


def list_rows(directory: Path) -> Iterator[Path]:
    """Yield the files below `directory` whose names say that they are rows; hidden ones are passed over."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and split_name(name).kind in IN_DIRECTORIES:
                yield Path(folder) / name


def _find_by_pattern(pattern: str) -> list[LocatedFile]:
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not paths:
        raise UsageError(f"{pattern}: no file is called like that; check the path and the pattern")
    return [LocatedFile(path=Path(path), shown=Path(path)) for path in paths]


InputFiles = tuple[InputFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedInput:
    """A job's input on this machine. `name` may name the job.

    `said` is what the job named, with what came by stdin named as the copy that was kept of it.
    """

    files: InputFiles
    name: str
    said: tuple[str, ...]


def resolve_inputs(
    said: Sequence[str], cache: DigestCache | None = None, *, makes: bool = True
) -> ResolvedInput:
    """Return the files that `said` names, in its order; those of a glob or directory sorted by name.

    Without `makes`, nothing is fetched and no copy made: what is not there yet is refused.

    Raises:
        UsageError: Something is not there, or named twice, or of an unknown format.
        InputRefused: Something is empty or damaged.
        StorageFailed: A copy cannot be written.
    """
    cache = cache or open_digest_cache()
    if said.count(STDIN) > 1:
        raise UsageError("-: stdin is named twice; it can be read once")
    said = [str(keep_stdin()) if name == STDIN else name for name in said]
    found = [file for name in said for file in find_files(name, makes=makes)]
    _refuse_twice(found)
    plain = [_normalize_file(file, cache, makes=makes) for file in found]
    names = name_files([str(file.shown) for file in found])
    files = tuple(
        InputFile(path=file.path, shown=origin.shown, name=name, digest=file.digest)
        for origin, file, name in zip(found, plain, names, strict=True)
    )
    return ResolvedInput(files=files, name=_name_input(said, files), said=tuple(said))


def digest_files(files: Sequence[InputFile], cache: DigestCache) -> str:
    """Return what stands for the content of `files` in a job's identity: neither names nor places count.

    One file has the digest of its content, packed or not; several have that of all theirs, in order.

    Raises:
        UsageError, IntegrityError: As for digest_file.
    """
    digests = [file.digest or digest_file(file.path, cache) for file in files]
    return digests[0] if len(digests) == 1 else digest_json(["files", *digests])


def name_files(shown: Sequence[str]) -> list[str]:
    """Return what the output calls the files: the last part of the name, of several all below the directory
    that they have in common.
    """
    if len(shown) == 1 or any(is_url(name) for name in shown) != all(is_url(name) for name in shown):
        names = [_spell(name.rstrip("/").rpartition("/")[2]) for name in shown]
        return names if len(set(names)) == len(names) else [_spell(name) for name in shown]
    paths = list(shown) if is_url(shown[0]) else [os.path.abspath(name) for name in shown]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [_spell(path[len(common) :].lstrip("/")) for path in paths]


def _normalize_file(found: LocatedFile, cache: DigestCache, *, makes: bool) -> NormalizedFile:
    if is_dataset(found.path):
        return normalize_dataset(found, cache, makes=makes)
    return normalize_file(found, cache, makes=makes)


def _refuse_twice(found: Sequence[LocatedFile]) -> None:
    seen: set[str] = set()
    for file in found:
        real = os.path.realpath(file.path)
        if real in seen:
            raise UsageError(f"{file.shown}: is named twice; name each file once")
        seen.add(real)


def _name_input(said: Sequence[str], files: InputFiles) -> str:
    """Return the name of the one directory that was named, or of the first file."""
    if len(said) == 1 and Path(said[0]).is_dir():
        return Path(os.path.abspath(said[0])).name
    path = Path(files[0].name.rpartition("/")[2])
    return STDIN_NAME if is_copy(Path(said[0])) else split_name(path.name).stem


def _spell(name: str) -> str:
    """Return `name` in UTF-8, with bytes that are not as \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")
