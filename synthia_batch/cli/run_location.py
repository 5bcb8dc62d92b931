"""Where a run is: a directory, or a prefix in an object store, of which commands read a copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Place = Annotated[str, typer.Argument(metavar="DIR|URL", help="A run directory, or s3:// or gs://...")]


def is_url(place: str) -> bool:
    """Return whether the run is in a store."""
    return "://" in place


def require_directory(place: str, flag: str) -> Path:
    """Return the directory of a run that `flag` is to write to, or to resume.

    Raises:
        BadParameter: It is in a store.
    """
    if is_url(place):
        raise typer.BadParameter(f"{flag} needs the run's state directory: name that one, not {place}")
    return Path(place)


@contextmanager
def open_place(place: str) -> Iterator[Path]:
    """The run's directory, or one with all that the store has of it, for the block.

    Raises:
        UsageError: There is no run.
        StorageFailed: The store does not answer, or does not allow it.
    """
    if not is_url(place):
        yield Path(place)
        return
    from synthia_batch.storage.remote.download import open_copy

    with open_copy(place) as directory:
        yield directory
