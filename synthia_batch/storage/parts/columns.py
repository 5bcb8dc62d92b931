"""Published parts read back: whole, by columns, or by rows. Text is in memory a batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthia_batch.core.errors import IntegrityError
from synthia_batch.storage.parts.row_digest import digest_columns

TEXT_BATCH_ROWS = 256
"""Rows whose text is in memory at a time."""
COLUMN_BYTES = 32 << 20
"""A column of up to this size is in memory as a whole while its rows' digest is computed."""
_NUMBERS = ("row_index", "sample_index", "system", "finish_reason", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartNumbers:
    """The small columns of finished samples: arrays with one entry per row, in order.

    `system` and `reason` are indexes into `systems` and `reasons`, which hold each name once.
    """

    row: NDArray[np.int64]
    index: NDArray[np.int64]
    system: NDArray[np.int64]
    reason: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    completion_tokens: NDArray[np.int64]
    systems: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCodes:
    """The codes of a failed part: `code` has one index into `codes` per row."""

    code: NDArray[np.int64]
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """The contents of a part's footer: each column's name and Arrow type, and the library that wrote it."""

    columns: tuple[tuple[str, str], ...]
    writer: str


@contextmanager
def open_part(path: Path) -> Iterator[pq.ParquetFile]:
    """Open the part at `path`; every page that is read inside the block has its checksum verified."""
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of a part, with all columns or with `columns`; every page's checksum is verified.

    The footer has no checksum of its own: only the SHA-256 in the ledger covers the whole file.
    """
    with open_part(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def holds_rows(path: Path, rows_digest: str) -> bool:
    """Whether the file can be read and its rows have that digest, whatever the file's bytes."""
    try:
        with _reading(path):
            return digest_file(path) == rows_digest
    except (IntegrityError, pa.ArrowException, ValueError):  # Damage may be in a name, or in text.
        return False


def digest_file(source: Path | pa.NativeFile) -> str:
    """Return the digest of a part's rows, with a row group of one column in memory at a time."""
    with pq.ParquetFile(source, page_checksum_verification=True) as file:
        columns = ((field.name, field.type, _FileColumn(file, field.name)) for field in file.schema_arrow)
        return digest_columns(file.metadata.num_rows, columns)


class _FileColumn:
    """A column of a file, a row group at a time; a small one is read once."""

    def __init__(self, file: pq.ParquetFile, name: str) -> None:
        self._file = file
        self._name = name
        self._chunks: list[pa.Array] | None = None

    def __iter__(self) -> Iterator[pa.Array]:
        if self._chunks is not None:
            yield from self._chunks
            return
        kept: list[pa.Array] | None = []
        for number in range(self._file.num_row_groups):
            group = self._file.read_row_group(number, [self._name], use_threads=False)
            for chunk in group.column(self._name).chunks:
                yield chunk
                if kept is not None and sum(other.nbytes for other in kept) + chunk.nbytes <= COLUMN_BYTES:
                    kept.append(chunk)
                else:
                    kept = None
        self._chunks = kept


def refuse_part(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: {reason}\n"
        "  `synthia-batch verify DIR --repair` drops a damaged part; the next run regenerates it",
        reason=reason,
    )


def read_numbers(path: Path) -> PartNumbers:
    """Return the small columns of the data part at `path`; its text is not read."""
    table = _read_small(path, _NUMBERS)
    system, systems = _encode(table["system"])
    reason, reasons = _encode(table["finish_reason"])
    return PartNumbers(
        row=to_numpy(table["row_index"]),
        index=to_numpy(table["sample_index"]),
        system=system,
        reason=reason,
        prompt_tokens=to_numpy(table["prompt_tokens"]),
        completion_tokens=to_numpy(table["completion_tokens"]),
        systems=systems,
        reasons=reasons,
    )


def read_codes(path: Path) -> PartCodes:
    code, codes = _encode(_read_small(path, ("code",))["code"])
    return PartCodes(code=code, codes=codes)


def read_answers(path: Path) -> Iterator[list[str]]:
    """Yield the answers of the data part at `path` in order, in batches of TEXT_BATCH_ROWS."""
    for batch in _read_batches(path, ("response",)):
        yield batch.column(0).to_pylist()


def read_rows(path: Path, positions: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return `columns` of the rows at `positions`, which count from 0, in rising order."""
    wanted = sorted(set(positions))
    rows: list[dict[str, Any]] = []
    first = 0
    for batch in _read_batches(path, columns):
        inside = [at - first for at in wanted if first <= at < first + batch.num_rows]
        rows += batch.take(pa.array(inside, pa.int64())).to_pylist() if inside else []
        first += batch.num_rows
        if wanted and first > wanted[-1]:
            break
    return rows


def read_part_facts(path: Path) -> PartFacts:
    """Return the contents of the footer of the part at `path`."""
    with _reading(path):
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    columns = tuple((field.name, str(field.type)) for field in schema)
    return PartFacts(columns=columns, writer=metadata.created_by)


def _read_small(path: Path, columns: Sequence[str]) -> pa.Table:
    with open_part(path) as file:
        return file.read(columns=list(columns), use_threads=False)


def _read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with open_part(path) as file:
        yield from file.iter_batches(TEXT_BATCH_ROWS, columns=list(columns), use_threads=False)


def _encode(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    encoded = pc.fill_null(column.combine_chunks(), "").dictionary_encode()
    return to_numpy(encoded.indices), tuple(encoded.dictionary.to_pylist())


def to_numpy(column: Any) -> NDArray[np.int64]:
    """Return a column of integers as an array, nulls as 0."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    # Not to_numpy(): it imports pandas, which takes a second.
    values: NDArray[Any] = np.from_dlpack(pc.fill_null(array, 0))
    return values.astype(np.int64)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        raise refuse_part(path, f"cannot be read as a part: {exc}") from exc
