"""Opens the source that reads one file or several."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthia_batch.core.types import InputFile
from synthia_batch.inputs.base import Source
from synthia_batch.inputs.fetch.file_types import InputKind, get_kind, split_name
from synthia_batch.inputs.fetch.sniff import refuse_format, sniff_file

if TYPE_CHECKING:
    from synthia_batch.inputs.readers.file_source import FileSource


def open_source(path: Path, shown: Path | str | None = None) -> "FileSource":
    """Return the source that reads `path`, a normalized file; `shown` is its name in messages.

    Raises:
        UsageError: The file cannot be read, or has no format that is read directly.
        InputRefused: It is empty.
    """
    shown = path if shown is None else shown
    if split_name(path.name).compression is not None:
        raise refuse_format(shown)
    encoding = sniff_file(path, shown)
    if encoding.compression is not None or encoding.kind.reader is None:
        raise refuse_format(shown)
    return _open(encoding.kind, path, shown)


def open_files(files: Sequence[InputFile]) -> Source:
    """Return the source that reads all of `files`, one after the other, in the formats found earlier."""
    sources = [open_file(file) for file in files]
    if len(sources) == 1:
        return sources[0]
    from synthia_batch.inputs.readers.multi_file import ManySource

    return ManySource(sources)


def open_file(file: InputFile) -> "FileSource":
    """Return the source that reads one file, in the format found earlier."""
    return _open(
        get_kind(file.kind),
        file.path,
        file.shown,
        stamp=file.stamp,
        content=file.content,
        max_row_bytes=file.max_row_bytes,
        is_new_copy=file.is_new_copy,
    )


def _open(kind: InputKind, path: Path, shown: Path | str, **options: Any) -> "FileSource":
    source: FileSource = kind.load_reader()(path, shown, **options)
    return source
