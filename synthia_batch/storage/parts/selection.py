"""Parts of a selection: rows of another run's parts, in files of its own.

A row is unchanged, with the columns that the selection adds behind its own. What is not kept of data/ is in
failed/, with its code and message, among what had failed before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthia_batch.core.types import KeptColumn, Shard
from synthia_batch.storage.layout import ROW_GROUP_ROWS, RunDir
from synthia_batch.storage.parts.columns import digest_file, open_part, read_part
from synthia_batch.storage.parts.reader import SampleGrid, list_missing, number_made, place_data_rows
from synthia_batch.storage.parts.schema import DATA_NAMES, failed_schema, kept_type
from synthia_batch.storage.parts.writer import describe_data, describe_failed, open_writer
from synthia_batch.storage.publish import EncodedPart, EncodedShard

_COPIED = ("id", "row_index", "sample_index", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedRun:
    """The run that is selected from, and the `source_file` and `metadata` of the selection's files.

    `added` are the selection's columns behind those that the run `kept`.
    """

    run_dir: RunDir
    grid: SampleGrid
    kept: Sequence[KeptColumn]
    fingerprint: str
    source_file: str
    metadata: Mapping[str, str]
    added: Sequence[KeptColumn] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a selection makes of the rows of a data part, by their numbers in it.

    `is_kept` has an entry for each; `explain` returns code and message of one that is not. `read` returns the
    values of one that is, for the columns that the selection adds, by name.
    """

    is_kept: NDArray[np.bool_]
    explain: Callable[[int], tuple[str, str]]
    read: Callable[[int], Mapping[str, Any]]


def list_runs(kept: Sequence[KeptColumn]) -> dict[str, tuple[str, ...]]:
    """Return the fields of each kept column that is the sample of an earlier run."""
    structs = {column.name: kind for column in kept if pa.types.is_struct(kind := kept_type(column))}
    fields = {name: tuple(field.name for field in kind) for name, kind in structs.items()}
    return {name: names for name, names in fields.items() if {*DATA_NAMES} <= {*names}}


def iterate_samples(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield `columns` of the rows of a part, in order, a thousand rows in memory at a time.

    Of a struct, only the fields that are named with a dot are read.
    """
    with open_part(path) as file:
        for batch in file.iter_batches(ROW_GROUP_ROWS // 10, columns=list(columns), use_threads=False):
            values = [column.to_pylist() for column in batch.columns]
            for row in zip(*values, strict=True):
                yield dict(zip(batch.schema.names, row, strict=True))


def encode_selection(run: SelectedRun, shard: Shard, chosen: Chosen) -> EncodedShard:
    """Return the parts of `shard` in a selection.

    The memory is that of the encoded parts, a row group of data/, and all that is not kept.
    """
    data, failed = run.run_dir.data_part(shard), run.run_dir.failed_part(shard)
    schema = describe_data([*run.kept, *run.added], run.grid.optional, run.metadata)
    made = encode_tables(_filter(data, chosen, run.added), schema) if data.exists() else None
    dropped = _list_dropped(data, chosen, run.source_file)
    tables = [dropped] if dropped is not None else []
    tables += [read_part(failed)] if failed.exists() else []
    if not tables:
        return EncodedShard(shard=shard, data=made, failed=None)
    ordinals = _number_failed(run, shard, data, chosen.is_kept)
    rows = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
    rows = rows.take(pa.array(np.argsort(ordinals, kind="stable")))
    return EncodedShard(shard=shard, data=made, failed=encode_tables([rows], describe_failed(run.metadata)))


def encode_tables(tables: Iterable[pa.Table], schema: pa.Schema) -> EncodedPart | None:
    """Return the part with the rows of `tables`, whose columns are those of `schema`; None without rows."""
    sink, rows = pa.BufferOutputStream(), 0
    with open_writer(sink, schema) as writer:
        for group in _regroup(tables):
            # One chunk: pages must not depend on how the rows arrived.
            writer.write_table(
                group.replace_schema_metadata(schema.metadata).combine_chunks(), ROW_GROUP_ROWS
            )
            rows += group.num_rows
    if not rows:
        return None
    content = sink.getvalue()
    digest = digest_file(pa.BufferReader(content))
    return EncodedPart(content=memoryview(content).cast("B"), rows=rows, rows_digest=digest)


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of `tables` in tables of ROW_GROUP_ROWS, the last one of fewer."""
    waiting: pa.Table | None = None
    for table in tables:
        plain = table.replace_schema_metadata(None)
        waiting = plain if waiting is None else pa.concat_tables([waiting, plain])
        while waiting.num_rows >= ROW_GROUP_ROWS:
            yield waiting.slice(0, ROW_GROUP_ROWS)
            waiting = waiting.slice(ROW_GROUP_ROWS)
    if waiting is not None and waiting.num_rows:
        yield waiting


def _filter(path: Path, chosen: Chosen, added: Sequence[KeptColumn]) -> Iterator[pa.Table]:
    """Yield the rows that are kept, with the columns that are `added`."""
    first = 0
    with open_part(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            is_kept = chosen.is_kept[first : first + table.num_rows]
            numbers = (first + np.flatnonzero(is_kept)).tolist()
            first += table.num_rows
            table = table.filter(pa.array(is_kept))
            values = [chosen.read(number) for number in numbers] if added else []
            for column in added:
                made = pa.array([value[column.name] for value in values], kept_type(column))
                table = table.append_column(column.name, made)
            yield table


def _list_dropped(path: Path, chosen: Chosen, source_file: str) -> pa.Table | None:
    """Return the rows of failed/ for those of the data part at `path` that are not kept."""
    numbers = np.flatnonzero(~chosen.is_kept)
    if not len(numbers):
        return None
    copied = read_part(path, _COPIED).filter(pa.array(~chosen.is_kept))
    codes, messages = zip(*map(chosen.explain, numbers.tolist()), strict=True)
    columns = {
        **{column: copied[column] for column in _COPIED},
        "code": pa.array(codes, pa.string()),
        "message": pa.array(messages, pa.string()),
        "source_file": pa.array([source_file] * len(numbers), pa.string()),
        "source_line": pa.nulls(len(numbers), pa.int64()),  # data/ does not have it.
    }
    return pa.table([columns[field.name] for field in failed_schema()], schema=failed_schema())


def _number_failed(
    run: SelectedRun, shard: Shard, data: Path, is_kept: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the ordinals of what was dropped, then of what had failed before."""
    if not data.exists():
        return list_missing(shard, np.array([], np.int64))
    metadata = {"synthia_batch.fingerprint": run.fingerprint}
    made = number_made(shard, run.grid, place_data_rows(data, run.grid, run.kept, metadata))
    return np.concatenate([made[~is_kept], list_missing(shard, made)])
