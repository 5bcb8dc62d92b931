"""Packed files, read as the bytes within."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from synthia_batch.errors import InputRefused

CHUNK_BYTES = 1024 * 1024
MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def find_packing(magic: bytes) -> str | None:
    """Return how a file that begins with `magic` is packed, None where it is not."""
    return next((packing for start, packing in MAGICS.items() if magic.startswith(start)), None)


@contextmanager
def open_unpacked(path: Path, packing: str | None, shown: Path | str) -> Iterator[BinaryIO]:
    """Open the bytes within `path` for the block; they are read in order.

    Reading raises InputRefused, which names the file as `shown`, where it is damaged or ends early.
    """
    with path.open("rb") as file:
        if packing is None:
            inner: Any = file
        elif packing == "gzip":
            inner = gzip.GzipFile(fileobj=file)
        else:
            from synthia_batch.inputs.fetch.arrow import open_zstd

            inner = open_zstd(path)
        with inner:
            reader = _Refusing(inner, packing or "plain", shown)
            yield cast(BinaryIO, io.BufferedReader(reader, CHUNK_BYTES))


class _Refusing(io.RawIOBase):
    """Reads from a stream, and puts its faults into words."""

    def __init__(self, inner: Any, packing: str, shown: Path | str) -> None:
        self._inner = inner
        self._packing = packing
        self._shown = shown
        self._done = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there is something. Raises InputRefused."""
        try:
            content = self._inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, ValueError) as exc:
            raise InputRefused(
                [
                    f"{self._shown}: not a {self._packing} file that can be read, or damaged, or cut short: "
                    f"{exc} (behind {self._done:,} bytes of what is in it)"
                ]
            ) from exc
        buffer[: len(content)] = content
        self._done += len(content)
        return len(content)
