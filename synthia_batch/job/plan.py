"""From rows to samples and shards: pure functions of the job and the rows.

Nothing here depends on workers, time or files, so a job always has the same plan.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from blake3 import blake3

from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.types import Message, Row, Sample, Shard
from synthia_batch.job.resolved import AdapterChoice, PlanSpec, SystemText

ROWS_STEP = 1000
"""Shards are multiples of this many rows if that fits; sources keep a checkpoint for each."""
PREFERRED_SHARDS = 1000
"""Beyond this, shards grow before they become more: file systems and readers prefer that, ..."""
MAX_SHARD_SAMPLES = 4000
"""... up to this: the answers of a shard that is being filled are some 20 MB of text. `samples_per_file`
makes larger ones, which are encoded a row group at a time."""
NAMED_SHARDS = 99_999
"""The most that five digits can number, the pattern that dataset readers look for. From 400,000,000
samples on, shards grow again."""
ROW_SYSTEM = "row"
"""The name of a system message that is part of the row."""


def read_shards(plan: Mapping[str, Any]) -> tuple[Shard, ...]:
    """Return the shards of the run with this plan.json."""
    return plan_shards(
        plan["scan"]["rows"], plan["samples_per_row"], plan["identity"].get("samples_per_file")
    )


def plan_shards(rows: int, samples_per_row: int, samples_per_file: int | None = None) -> tuple[Shard, ...]:
    """Return the shards of `rows` rows, in order.

    All but the last are of one size: the whole rows of `samples_per_file` samples, at least one row. By
    default it is 1,000 rows or a multiple of them, or fewer where 1,000 rows have more than 4,000 samples.
    Up to 1,000 shards have 1,000 rows each; then shards grow to 4,000 samples; then they become more.

    Raises:
        ValueError: There are no rows.
    """
    if rows < 1:
        raise ValueError("a plan needs at least one row")
    rows_per_shard = (
        _choose_rows_per_shard(rows, samples_per_row)
        if samples_per_file is None
        else max(1, samples_per_file // samples_per_row, _divide_up(rows, NAMED_SHARDS))
    )
    starts = range(0, rows, rows_per_shard)
    return tuple(
        _make_shard(number, len(starts), start, min(start + rows_per_shard, rows), samples_per_row)
        for number, start in enumerate(starts)
    )


def expand_row(row: Row, spec: PlanSpec) -> Iterator[Sample]:
    """Yield the samples of `row` in the order of their ordinals: by system message, then by index."""
    ordinal = row.index * spec.samples_per_row
    own_seed = row.sampling.seed if row.sampling is not None else None
    for system in spec.systems:
        name, messages = _apply_system(row, system, spec)
        for index in range(spec.num_samples):
            yield Sample(
                ordinal=ordinal,
                row=row,
                system=name,
                messages=messages,
                index=index,
                seed=derive_seed(spec.seed, row.id, name, index)
                if own_seed is None
                else derive_own_seed(own_seed, index),
            )
            ordinal += 1


def limit_answer(row: Row, max_tokens: int) -> int:
    """Return the token limit of an answer to `row`: its own, or the job's `max_tokens`."""
    own = row.sampling.max_tokens if row.sampling is not None else None
    return max_tokens if own is None else own


def choose_row_adapter(choice: AdapterChoice, row: Row) -> str | None:
    """Return the LoRA adapter for the samples of `row`, None for the model without one.

    Raises:
        SampleRefused: The row names one that the job does not have.
    """
    if choice.column is None:
        return choice.name
    named = row.kept.get(choice.column)
    if named is None or named == "":
        return None
    if named not in choice.known:
        raise SampleRefused(
            "adapter_unknown",
            f"column {choice.column!r} names {named!r}, which is none of {', '.join(choice.known)}",
        )
    return str(named)


def derive_seed(job_seed: int, row_id: str, system: str, index: int) -> int:
    """Return the 63-bit seed of a sample: a hash of its identity, independent of time and machine."""
    # A length before the id distinguishes "a" + "b..." from "ab" + "..." for any ids.
    identifier = row_id.encode()
    text = b"%d\0%d\0%s\0%s\0%d" % (job_seed, len(identifier), identifier, system.encode(), index)
    return int.from_bytes(blake3(text).digest(length=8), "big") >> 1


def derive_own_seed(own_seed: int, index: int) -> int:
    """Return the 63-bit seed of a sample of a row with its own seed, which the first sample gets."""
    if not index:
        return own_seed
    return int.from_bytes(blake3(b"own\0%d\0%d" % (own_seed, index)).digest(length=8), "big") >> 1


def derive_turn_seed(sample_seed: int, turn: int) -> int:
    """Return the 63-bit seed of a turn of a conversation, counted from 0; the first gets the sample's."""
    if not turn:
        return sample_seed
    return int.from_bytes(blake3(b"turn\0%d\0%d" % (sample_seed, turn)).digest(length=8), "big") >> 1


def _choose_rows_per_shard(rows: int, samples_per_row: int) -> int:
    fitting = max(1, MAX_SHARD_SAMPLES // samples_per_row)
    steps = _divide_up(_divide_up(rows, ROWS_STEP), PREFERRED_SHARDS)
    chosen = min(steps, fitting // ROWS_STEP) * ROWS_STEP or min(fitting, ROWS_STEP)
    return max(chosen, _divide_up(rows, NAMED_SHARDS))


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _make_shard(number: int, count: int, first_row: int, stop_row: int, samples_per_row: int) -> Shard:
    return Shard(
        number=number,
        count=count,
        first_row=first_row,
        stop_row=stop_row,
        first=first_row * samples_per_row,
        stop=stop_row * samples_per_row,
    )


def _apply_system(row: Row, system: SystemText, spec: PlanSpec) -> tuple[str, tuple[Message, ...]]:
    text = (row.system or "") if spec.system_column else system.text
    is_replaced = bool(text) if spec.system_column else spec.replace_own_system
    if row.fault is not None:
        return system.name, ()
    own = row.messages[0].role == "system"
    if own and not is_replaced:
        return ROW_SYSTEM, row.messages
    turns = row.messages[1:] if own else row.messages
    return system.name, (Message("system", text), *turns) if text else turns
