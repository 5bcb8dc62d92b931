"""Published parts read column by column: what the report and the card count, never all text at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthia_batch.errors import IntegrityError

TEXT_BATCH_ROWS = 256
"""Rows whose text is in memory at a time."""
_NUMBERS = ("row_index", "sample_index", "system", "finish_reason", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartNumbers:
    """The small columns of finished samples, one entry of each array per row, in their order.

    `system` and `reason` count into `systems` and `reasons`, which hold each name once.
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
    """Why the samples of a failed part failed: `code` counts into `codes`, one entry per row."""

    code: NDArray[np.int64]
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """What a part's footer says: its columns by name, as Arrow types, and the library that wrote it."""

    columns: tuple[tuple[str, str], ...]
    writer: str


def read_numbers(path: Path) -> PartNumbers:
    """Return the small columns of the data part at `path`; its text is not read.

    Raises:
        IntegrityError: The part cannot be read.
    """
    table = _read(path, _NUMBERS)
    system, systems = _encode(table["system"])
    reason, reasons = _encode(table["finish_reason"])
    return PartNumbers(
        row=_to_numpy(table["row_index"]),
        index=_to_numpy(table["sample_index"]),
        system=system,
        reason=reason,
        prompt_tokens=_to_numpy(table["prompt_tokens"]),
        completion_tokens=_to_numpy(table["completion_tokens"]),
        systems=systems,
        reasons=reasons,
    )


def read_codes(path: Path) -> PartCodes:
    """Return why the samples of the failed part at `path` failed.

    Raises:
        IntegrityError: The part cannot be read.
    """
    code, codes = _encode(_read(path, ("code",))["code"])
    return PartCodes(code=code, codes=codes)


def read_answers(path: Path) -> Iterator[list[str]]:
    """Yield the answers of the data part at `path` in order, some hundreds at a time.

    Raises:
        IntegrityError: The part cannot be read.
    """
    for batch in _read_batches(path, ("response",)):
        yield batch.column(0).to_pylist()


def read_rows(path: Path, positions: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows at `positions`, which count from 0, in rising order, with `columns` of them.

    Raises:
        IntegrityError: The part cannot be read.
    """
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
    """Return what the footer of the part at `path` says.

    Raises:
        IntegrityError: The part cannot be read.
    """
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as exc:
        raise _refuse(path, exc) from exc
    columns = tuple((field.name, str(field.type)) for field in schema)
    return PartFacts(columns=columns, writer=metadata.created_by)


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as exc:
        raise _refuse(path, exc) from exc


def _read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(TEXT_BATCH_ROWS, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as exc:
        raise _refuse(path, exc) from exc


def _encode(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    encoded = pc.fill_null(column.combine_chunks(), "").dictionary_encode()
    return _to_numpy(encoded.indices), tuple(encoded.dictionary.to_pylist())


def _to_numpy(column: Any) -> NDArray[np.int64]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    # Not to_numpy(): it imports pandas, which takes a second.
    values: NDArray[Any] = np.from_dlpack(pc.fill_null(array, 0))
    return values.astype(np.int64)


def _refuse(path: Path, exc: Exception) -> IntegrityError:
    return IntegrityError(
        f"{path} cannot be read as a part: {exc}\n"
        "  `synthia-batch verify DIR --repair` drops a damaged part; the next run makes it again"
    )
