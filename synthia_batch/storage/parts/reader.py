"""Published parts read back as samples: their ordinals and their outcomes.

row_index, system and sample_index give a row's ordinal. failed/ has no system: there the order of the
rows gives it, since the two parts of a shard together hold each of its samples exactly once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthia_batch.core.types import Failed, Finished, KeptColumn, Message, Shard
from synthia_batch.job.plan import ROW_SYSTEM
from synthia_batch.storage.parts.columns import open_part, read_part, refuse_part, to_numpy
from synthia_batch.storage.parts.logprobs import decode_logprobs
from synthia_batch.storage.parts.schema import (
    RESULT_NAMES,
    data_schema,
    describe_features,
    failed_schema,
    list_optional,
)

_PLACE_COLUMNS = ("row_index", "sample_index", "system")
_DATA_COLUMNS = (*_PLACE_COLUMNS, *RESULT_NAMES)
_FAILED_COLUMNS = ("row_index", "sample_index", "code", "message")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGrid:
    """The order of a row's samples: by system message, then by index.

    `own_system` is the column's value for a row that brought its own message in place of the one that
    the job names; None where rows cannot. `plays_turns`: every answer in `messages` was generated.
    `optional` names the optional columns that data/ has.
    """

    systems: tuple[str, ...]
    num_samples: int
    own_system: str | None
    plays_turns: bool = False
    optional: tuple[str, ...] = ()

    @property
    def samples_per_row(self) -> int:
        return len(self.systems) * self.num_samples


def read_grid(identity: Mapping[str, Any]) -> SampleGrid:
    return SampleGrid(
        systems=tuple(name for name, _ in identity["system"]),
        num_samples=identity["num_samples"],
        own_system=None if identity["replace_own_system"] else ROW_SYSTEM,
        plays_turns=identity["input"]["columns"].get("turns") is not None,
        optional=list_optional(identity),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The places of the rows of the part at `path`: arrays with one entry per row.

    `system` is an index into the grid's, or -1 for an unknown one; None in failed/, which has no such
    column.
    """

    path: Path
    row: NDArray[np.int64]
    index: NDArray[np.int64]
    system: NDArray[np.int64] | None


def place_data_rows(
    path: Path, grid: SampleGrid, kept: Sequence[KeptColumn], metadata: Mapping[str, str]
) -> Places:
    """Return the places of the rows of a data part, after checking that its columns are its run's.

    Reads only the columns that give the places, a row group at a time.
    """
    return _place_rows(path, grid, data_schema(kept, grid.optional), {**metadata, **describe_features(kept)})


def place_failed_rows(path: Path, grid: SampleGrid, metadata: Mapping[str, str]) -> Places:
    return _place_rows(path, grid, failed_schema(), metadata)


def number_made(shard: Shard, grid: SampleGrid, data: Places) -> NDArray[np.int64]:
    """Return the ordinals of the rows of a data part.

    Raises:
        IntegrityError: A row is out of order, there twice, or of another shard.
    """
    system = np.zeros_like(data.row) if data.system is None else data.system
    ordinals = data.row * grid.samples_per_row + system * grid.num_samples + data.index
    inside = (shard.first <= ordinals) & (ordinals < shard.stop)
    known = inside & (system >= 0) & (data.index >= 0) & (data.index < grid.num_samples)
    if not known.all():
        at = int(np.argmin(known))
        raise refuse_part(data.path, f"row {at} ({_name(data, at)}) is no sample of shard {shard.number}")
    rising = np.diff(ordinals) > 0
    if not rising.all():
        at = int(np.argmin(rising)) + 1
        what = "is there twice" if ordinals[at] in ordinals[:at] else "is out of order"
        raise refuse_part(data.path, f"row {at} ({_name(data, at)}) {what}")
    return ordinals


def number_failed(
    shard: Shard, grid: SampleGrid, failed: Places, made: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the ordinals of the rows of a failed part: those that are not in `made`, in order.

    Raises:
        IntegrityError: It has other rows.
    """
    missing = list_missing(shard, made)
    shared = min(len(missing), len(failed.row))
    rows, indexes = missing // grid.samples_per_row, missing % grid.num_samples
    fits = (rows[:shared] == failed.row[:shared]) & (indexes[:shared] == failed.index[:shared])
    if not fits.all():
        at = int(np.argmin(fits))
        raise refuse_part(
            failed.path,
            f"row {at} ({_name(failed, at)}) stands where {describe_sample(grid, int(missing[at]))} must be",
        )
    if len(failed.row) > shared:
        raise refuse_part(
            failed.path, f"row {shared} ({_name(failed, shared)}) is in data/ as well, or twice"
        )
    if len(missing) > shared:
        sample = describe_sample(grid, int(missing[shared]))
        raise refuse_part(failed.path, f"{sample} is neither here nor in data/")
    return missing


def list_missing(shard: Shard, made: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ordinals of `shard` that are not among `made`, in order."""
    everything = np.arange(shard.first, shard.stop, dtype=np.int64)
    return np.setdiff1d(everything, made, assume_unique=True)


def describe_sample(grid: SampleGrid, ordinal: int) -> str:
    row, offset = divmod(ordinal, grid.samples_per_row)
    system, index = divmod(offset, grid.num_samples)
    return f"sample {ordinal} (row {row}, system {grid.systems[system]!r}, sample {index})"


def read_made(path: Path, shard: Shard, grid: SampleGrid) -> dict[int, Finished]:
    """Return the samples of a data part by ordinal, each exactly as it was journaled."""
    more = tuple(name for name in ("messages_json", "candidates") if name in grid.optional)
    table = read_part(path, (*_choose_columns(_DATA_COLUMNS, grid), *more))
    ordinals = number_made(shard, grid, _place(path, table, grid))
    has_logprobs = "logprobs" in grid.optional
    logprobs = decode_logprobs(read_part(path, ("logprobs",))["logprobs"]) if has_logprobs else None
    return {
        ordinal: Finished(
            ordinal=ordinal,
            **{name: row[name] for name in RESULT_NAMES},
            earlier=_list_answers(row)[:-1],
            called=_read_called(row),
            candidates=row.get("candidates"),
            logprobs=logprobs[at] if logprobs is not None else None,
        )
        for at, (ordinal, row) in enumerate(zip(ordinals.tolist(), table.to_pylist(), strict=True))
    }


def read_failed(
    path: Path, shard: Shard, grid: SampleGrid, made: Mapping[int, Finished]
) -> dict[int, Failed]:
    """Return the samples of a failed part by ordinal; `made` are those of the shard's data part."""
    table = read_part(path, _choose_columns(_FAILED_COLUMNS, grid))
    known = np.fromiter(made, dtype=np.int64, count=len(made))
    ordinals = number_failed(shard, grid, _place(path, table, grid), known)
    return {
        ordinal: Failed(ordinal=ordinal, code=row["code"], message=row["message"], earlier=_list_answers(row))
        for ordinal, row in zip(ordinals.tolist(), table.to_pylist(), strict=True)
    }


def _choose_columns(columns: tuple[str, ...], grid: SampleGrid) -> tuple[str, ...]:
    return (*columns, "messages") if grid.plays_turns else columns


def _list_answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the answers of a conversation that was played turn by turn, none of any other."""
    return tuple(turn["content"] for turn in row.get("messages", ()) if turn["role"] == "assistant")


def _read_called(row: Mapping[str, Any]) -> Message | None:
    """Return the answer as a message with tool calls, None if it has none."""
    last = json.loads(row["messages_json"])[-1] if row.get("messages_json") else {}
    return Message.from_dict(last) if last.get("tool_calls") else None


def _place_rows(path: Path, grid: SampleGrid, schema: pa.Schema, metadata: Mapping[str, str]) -> Places:
    columns = [name for name in _PLACE_COLUMNS if name in schema.names]
    with open_part(path) as file:
        _check_schema(path, file.schema_arrow, schema, metadata)
        groups = [
            _place(path, file.read_row_group(number, columns, use_threads=False), grid)
            for number in range(file.num_row_groups)
        ]
    if not groups:
        raise refuse_part(path, "has no rows")
    systems = [group.system for group in groups if group.system is not None]
    return Places(
        path=path,
        row=np.concatenate([group.row for group in groups]),
        index=np.concatenate([group.index for group in groups]),
        system=np.concatenate(systems) if systems else None,
    )


def _check_schema(path: Path, found: pa.Schema, wanted: pa.Schema, metadata: Mapping[str, str]) -> None:
    if not found.remove_metadata().equals(wanted):
        here = {str(field) for field in found} ^ {str(field) for field in wanted}
        what = ", ".join(sorted(here)) or "their order"
        raise refuse_part(path, f"has other columns than its run; what differs: {what}")
    kept = found.metadata or {}
    for key, value in metadata.items():
        if kept.get(key.encode()) != value.encode():
            raise refuse_part(path, f"is of another run: its {key} is not {value}")


def _place(path: Path, table: pa.Table, grid: SampleGrid) -> Places:
    return Places(
        path=path,
        row=_read_places(path, table["row_index"]),
        index=_read_places(path, table["sample_index"]),
        system=_place_systems(table["system"], grid) if "system" in table.column_names else None,
    )


def _place_systems(column: pa.ChunkedArray, grid: SampleGrid) -> NDArray[np.int64]:
    known = {name: number for number, name in enumerate(grid.systems)}
    if grid.own_system is not None:
        known.setdefault(grid.own_system, 0)  # It replaces the only one that the job names.
    encoded = column.combine_chunks().dictionary_encode()
    numbers = np.array([known.get(name, -1) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    if encoded.null_count or not len(numbers):
        return np.full(len(column), -1, dtype=np.int64)
    places: NDArray[np.int64] = numbers[np.from_dlpack(encoded.indices)]
    return places


def _read_places(path: Path, column: pa.ChunkedArray) -> NDArray[np.int64]:
    if column.null_count:
        raise refuse_part(path, "has a row without a row_index or a sample_index")
    return to_numpy(column)


def _name(places: Places, at: int) -> str:
    return f"row_index {places.row[at]}, sample_index {places.index[at]}"
