"""Numbered rows: an input without a file, with columns that are drawn from a seed.

The draws of a row depend on the seed, the column's name and the row's number alone, so another column or
more rows change no other value.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from blake3 import blake3

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import InputFile
from synthia_batch.inputs.fetch.file_types import LocatedFile, get_kind
from synthia_batch.inputs.fetch.normalize import NormalizedFile, get_normalized_copy, write_facts
from synthia_batch.inputs.fetch.stamps import check_unchanged, read_stamps
from synthia_batch.job.fields import NUMBERED_ROWS
from synthia_batch.job.input_section import Input, Sampler
from synthia_batch.job.units import parse_count

VERSION = 2
"""Increased when the same samplers would draw other values."""
NUMBER = "number"
"""The column of a row's number, which counts from 0."""
_HASH_BITS = 64
_ALL = 10**12
"""More records than there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnColumns:
    """What the columns of numbered rows are drawn from, by name, and the job's seed.

    `limit` is how many of the rows the job takes, None for all: no more are written.
    """

    samplers: Mapping[str, Sampler] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None


NO_COLUMNS = DrawnColumns()


def draw_columns(declared: Input, seed: int) -> DrawnColumns:
    """Return the drawn columns of a job with this input and `seed`."""
    return DrawnColumns(samplers=declared.columns, seed=seed, limit=declared.limit)


def read_drawn(values: Mapping[str, Any]) -> DrawnColumns:
    """Return the drawn columns of a job that was saved as `values`. Raises ValueError."""
    samplers = values["input"].get("columns", {})
    return DrawnColumns(
        samplers={name: Sampler.model_validate(sampler) for name, sampler in samplers.items()},
        seed=values.get("seed", 0),
        limit=values["input"].get("limit"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Values, and their weights; none if all are equally likely."""

    values: Sequence[Any]
    weights: Sequence[float]
    pick: int


def count_numbered(path: str) -> int | None:
    """Return how many numbered rows `path` stands for, None if it is another path. Raises UsageError."""
    if not path.startswith(NUMBERED_ROWS):
        return None
    try:
        count = int(parse_count(path.removeprefix(NUMBERED_ROWS)))
    except ValueError:
        count = 0
    if count < 1:
        raise UsageError(f"{path}: expected a number of rows, such as {NUMBERED_ROWS}1000")
    return count


def normalize_numbered(
    found: LocatedFile,
    rows: int,
    drawn: DrawnColumns,
    pools: Mapping[str, Sequence[InputFile]],
    cache: DigestCache,
    *,
    makes: bool = True,
) -> NormalizedFile:
    """Return a file of `rows` numbered rows, or as many as are taken, created if missing.

    `pools` are the files of samplers.
    """
    paths = [file.path for files in pools.values() for file in files]
    stamps = read_stamps(paths, found.shown)
    contents = {name: [digest_file(file.path, cache) for file in files] for name, files in pools.items()}
    settings = {name: sampler.model_dump(exclude={"file"}) for name, sampler in drawn.samplers.items()}
    taken = rows if drawn.limit is None else min(rows, drawn.limit)
    key = digest_json(["numbered", VERSION, taken, list(settings.items()), contents, drawn.seed])[:32]
    kind = get_kind("jsonl")

    def build(target: Path) -> None:
        target.mkdir()
        choices = {
            name: _list_values(name, sampler, pools.get(name, ())) for name, sampler in drawn.samplers.items()
        }
        with (target / kind.rows_name).open("w", encoding="utf-8") as copy:
            for number in range(taken):
                values = {name: _draw(name, choice, number, drawn.seed) for name, choice in choices.items()}
                copy.write(json.dumps({NUMBER: number, **values}, ensure_ascii=False) + "\n")
        check_unchanged(stamps, found.shown)  # The key is the digest of what was there before.
        write_facts(target, kind.rows_name, None)

    return get_normalized_copy(key, build, found, makes=makes)


def _list_values(name: str, sampler: Sampler, files: Sequence[InputFile]) -> _Choice:
    if sampler.weights is not None:
        # In order of their names: mappings in another order are equal.
        names = sorted(sampler.weights)
        weights = [sampler.weights[value] for value in names]
        return _Choice(values=names, weights=weights, pick=sampler.pick)
    values = sampler.choice if sampler.choice is not None else _read_pool(name, sampler, files)
    if sampler.pick > len(values):
        what = f"pick = {sampler.pick} different ones, and there are {len(values)}"
        raise UsageError(f"input.columns.{name}: {sampler.file}: {what}")
    return _Choice(values=values, weights=(), pick=sampler.pick)


def _read_pool(name: str, sampler: Sampler, files: Sequence[InputFile]) -> list[Any]:
    from synthia_batch.inputs.readers.open import open_files

    records = open_files(files).peek(_ALL)
    names = list(dict.fromkeys(key for record in records for key in record))
    column = sampler.column or (names[0] if len(names) == 1 else None)
    if column is not None and column not in names:
        known = ", ".join(names) or "none"
        raise UsageError(f"input.columns.{name}: {sampler.file} has no column {column!r}; there are {known}")
    values = [record.get(column) if column is not None else record for record in records]
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"input.columns.{name}: {sampler.file}: {exc}; name another column") from exc
    return values


def _draw(name: str, choice: _Choice, number: int, seed: int) -> Any:
    """Return the value of a row, or the list of several different ones in the order they were drawn."""
    drawn = [choice.values[place] for place in _draw_places(name, choice, number, seed)]
    return drawn[0] if choice.pick == 1 else drawn


def _draw_places(name: str, choice: _Choice, number: int, seed: int) -> Iterator[int]:
    """Yield the places of `pick` values, none twice."""
    places, weights = list(range(len(choice.values))) if choice.weights else [], list(choice.weights)
    moved: dict[int, int] = {}
    for attempt in range(choice.pick):
        label = json.dumps([seed, name, number, attempt]).encode()
        share = int.from_bytes(blake3(label).digest(length=_HASH_BITS // 8), "big")
        if weights:
            sums = list(accumulate(weights))
            at = min(bisect_right(sums, share / 2**_HASH_BITS * sums[-1]), len(sums) - 1)
            del weights[at]
            yield places.pop(at)
        else:  # Fisher and Yates, of which only what was moved is noted.
            left = len(choice.values) - attempt
            at = share * left >> _HASH_BITS
            yield moved.get(at, at)
            moved[at] = moved.get(left - 1, left - 1)
