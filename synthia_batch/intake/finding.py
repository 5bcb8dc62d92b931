"""From one word of the command line to the files that it means."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from synthia_batch.errors import UsageError
from synthia_batch.intake.copies import is_copy
from synthia_batch.intake.found import IN_DIRECTORIES, Found, split_name
from synthia_batch.intake.plain import Say
from synthia_batch.intake.saved import refuse_splits
from synthia_batch.intake.stdin import STDIN_NAME, refuse_lost
from synthia_batch.source.open import FORMATS

HUB_PREFIX = "hf://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(said: str) -> bool:
    """Say whether it names something that is not on this machine."""
    return _URL.match(said) is not None


def is_dataset(path: Path) -> bool:
    """Say whether `path` is a directory that datasets' save_to_disk has written."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def find_files(said: str, say: Say, *, makes: bool = True) -> list[Found]:
    """Return the files of rows that `said` names: a file, a directory, a pattern or an address.

    Raises:
        UsageError: There are none, or they are not to be had.
    """
    if said.startswith(HUB_PREFIX):
        from synthia_batch.intake.hub import fetch_dataset

        return fetch_dataset(said, say, makes=makes)
    if is_url(said):
        from synthia_batch.intake.remote import fetch_remote

        return fetch_remote(said, say, makes=makes)
    path = Path(said)
    if is_copy(path):
        if not path.exists():
            raise refuse_lost(path)
        return [Found(path=path, shown=STDIN_NAME, guesses=True)]
    try:
        if path.is_dir():
            return _find_in_directory(path)
        if not path.exists() and glob.has_magic(said):
            return _find_by_pattern(said)
    except ValueError as exc:
        raise UsageError(f"{said!r}: is not a path: {exc}") from exc
    return [Found(path=path, shown=path)]


def _find_in_directory(directory: Path) -> list[Found]:
    if is_dataset(directory):
        return [Found(path=directory, shown=directory)]
    refuse_splits(directory)
    found = [Found(path=path, shown=path) for path in sorted(list_rows(directory), key=str)]
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


def _find_by_pattern(pattern: str) -> list[Found]:
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not paths:
        raise UsageError(f"{pattern}: no file is called like that; check the path and the pattern")
    return [Found(path=Path(path), shown=Path(path)) for path in paths]
