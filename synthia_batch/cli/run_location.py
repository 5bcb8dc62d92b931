"""The location of a run: a directory, or an object store URL, which commands read through a copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

RunLocation = Annotated[str, typer.Argument(metavar="DIR|URL", help="A run directory, or s3:// or gs://...")]


def is_url(location: str) -> bool:
    """Whether the run is in an object store."""
    return "://" in location


def require_directory(location: str, flag: str) -> Path:
    """Return the run directory that `flag` needs; refuse a store."""
    if is_url(location):
        raise typer.BadParameter(f"{flag} needs the run's state directory; name that instead of {location}")
    return Path(location)


@contextmanager
def open_location(location: str) -> Iterator[Path]:
    """Yield the run's directory, or a temporary copy of the run in a store."""
    if not is_url(location):
        yield Path(location)
        return
    from synthia_batch.storage.remote.download import open_copy

    with open_copy(location) as directory:
        yield directory
