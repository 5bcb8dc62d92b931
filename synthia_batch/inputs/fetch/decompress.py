"""Reads compressed files as the bytes they hold."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from synthia_batch.core.errors import InputRefused
from synthia_batch.inputs.fetch.file_types import Compression

CHUNK_BYTES = 1024 * 1024


@contextmanager
def open_decompressed(path: Path, compression: Compression | None, shown: Path | str) -> Iterator[BinaryIO]:
    """Open the decompressed bytes of `path` for the block, to be read in order.

    Reading raises InputRefused, with the file named as `shown`, if it is damaged or ends early.
    """
    name = compression.name if compression is not None else "uncompressed"
    with path.open("rb") as file:
        inner: Any = file
        if name == "gzip":
            inner = gzip.GzipFile(fileobj=file)
        elif name == "zstd":
            from synthia_batch.inputs.fetch.arrow import open_zstd

            inner = open_zstd(path)
        with inner:
            yield cast(BinaryIO, io.BufferedReader(_RefusingReader(inner, name, shown), CHUNK_BYTES))


class _RefusingReader(io.RawIOBase):
    """Reads from a stream and raises its errors as InputRefused."""

    def __init__(self, inner: Any, compression: str, shown: Path | str) -> None:
        self._inner = inner
        self._compression = compression
        self._shown = shown
        self._bytes_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there are bytes."""
        try:
            content = self._inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, ValueError) as exc:
            raise InputRefused(
                [
                    f"{self._shown}: damaged or truncated {self._compression} file: {exc} (after "
                    f"{self._bytes_read:,} decompressed bytes)"
                ]
            ) from exc
        buffer[: len(content)] = content
        self._bytes_read += len(content)
        return len(content)
