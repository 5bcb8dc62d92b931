"""The step `combine`: one value of what several samples say, in a pass before the other steps.

Memory is 16 bytes for each sample and 8 for each of its values, whatever the size of its text; of a majority,
every different value once.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np
from blake3 import blake3
from jinja2 import Undefined
from numpy.typing import NDArray

from synthia_batch.core.types import KeptColumn
from synthia_batch.inputs.records.expressions import (
    ID,
    Expression,
    ExpressionFailed,
    SampleNames,
    read_number,
)
from synthia_batch.job.select import Combine
from synthia_batch.results.select.compare import encode_value
from synthia_batch.results.select.names import PLACE, ROW_INDEX

_LARGEST = 2**63 - 1
"""The largest number of a column of integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """What became of the samples of a run, by their numbers.

    `original` has for a sample that was combined the number of the one that carries the values, else -1.
    `faults` are those of expressions. `columns` are the new ones.
    """

    original: NDArray[np.int64]
    faults: Mapping[int, str]
    columns: Sequence["CombinedColumn"]

    def read(self, number: int) -> dict[str, Any]:
        """Return the values that sample `number` carries, by name; None for one that is nothing."""
        return {column.kept.name: column.read(number) for column in self.columns}


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinedColumn:
    """A value of each sample that carries one, NaN for nothing: a number, or which of `options` it is."""

    kept: KeptColumn
    numbers: NDArray[np.float64]
    options: Sequence[Any] | None

    def read(self, number: int) -> Any:
        """Return the value of sample `number`, None for nothing."""
        value = float(self.numbers[number])
        if math.isnan(value):
            return None
        return value if self.options is None else self.options[int(value)]


class Combiner:
    """Combines the samples of a run. `columns` are those of the run that it reads."""

    def __init__(self, combine: Combine, run: str, names: SampleNames) -> None:
        """Compile the expressions about samples that belong together if they share the sample of `run`.

        If that is the job's own, they do if they share the row.
        """
        self.expressions = {
            name: Expression(f"combine.{name}.{value.how}", value.text, names)
            for name, value in combine.values.items()
        }
        self._combine, self._run, self._is_own = combine, run, run == names.job
        fields = (ROW_INDEX, ID) if self._is_own else (ROW_INDEX, *PLACE)
        self._fields = fields
        place = {*PLACE, *(names.locate(run, name) for name in fields)}
        self.columns = tuple(sorted(place.union(*(one.columns for one in self.expressions.values()))))

    def combine(self, samples: Iterable[Mapping[str, Any]]) -> Combined:
        """Return what becomes of `samples`, the finished ones of a run in their order, with `columns`.

        A sample on which an expression fails belongs to none of them.
        """
        noted = [
            _Noted(how=self._combine.values[name].how, expression=expression)
            for name, expression in self.expressions.items()
        ]
        groups, faults = bytearray(), dict[int, str]()
        for number, values in enumerate(samples):
            try:
                found = [column.evaluate(values) for column in noted]
            except ExpressionFailed as exc:
                faults[number], found = str(exc), [math.nan] * len(noted)
                groups.extend(bytes(8))
            else:
                groups.extend(self._digest_group(values))
            for column, value in zip(noted, found, strict=True):
                column.numbers.append(value)
        return _combine_groups(np.frombuffer(groups, np.uint64), faults, noted, tuple(self.expressions))

    def _digest_group(self, values: Mapping[str, Any]) -> bytes:
        """Return what samples that belong together have in common; of an empty struct, nothing."""
        sample = values if self._is_own else values[self._run]
        place = [values[name] for name in PLACE] if sample is None else None
        label = place or [sample[name] for name in self._fields]
        return blake3(json.dumps([place is None, *label]).encode()).digest(length=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    """The values of all samples: numbers, or which of `options` each is, the JSON of different values."""

    how: str
    expression: Expression
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    options: dict[str, int] = field(default_factory=dict)

    def evaluate(self, values: Mapping[str, Any]) -> float:
        """Return the value for a sample, NaN for nothing. Raises ExpressionFailed."""
        value = self.expression.evaluate(values)
        if isinstance(value, Undefined):
            return math.nan
        if self.how == "majority":
            is_whole = isinstance(value, float) and value.is_integer()
            return self.options.setdefault(encode_value(int(value) if is_whole else value), len(self.options))
        return float(bool(value)) if self.how == "all" else read_number(value)


def _combine_groups(
    groups: NDArray[np.uint64], faults: Mapping[int, str], noted: Sequence[_Noted], names: Sequence[str]
) -> Combined:
    """Return the samples of equal `groups` as one; zero is the group of none."""
    inside = np.flatnonzero(groups)
    order = inside[np.lexsort((inside, groups[inside]))]
    is_first = np.r_[True, groups[order[1:]] != groups[order[:-1]]] if len(order) else np.zeros(0, bool)
    firsts = order[is_first]
    original = np.full(len(groups), -1, np.int64)
    original[order] = firsts[np.cumsum(is_first) - 1]
    original[firsts] = -1
    bounds = [*np.flatnonzero(is_first).tolist(), len(order)]
    columns = []
    for name, column in zip(names, noted, strict=True):
        sorted_numbers = np.frombuffer(column.numbers, np.float64)[order]
        combined = np.full(len(groups), np.nan)
        combined[firsts] = [
            _compute(column.how, sorted_numbers[start:stop]) for start, stop in pairwise(bounds)
        ]
        columns.append(_describe(name, column, combined))
    return Combined(original=original, faults=faults, columns=columns)


def _compute(how: str, numbers: NDArray[np.float64]) -> float:
    """Return the value of a group; NaN if none of it has one, or it is beyond all numbers."""
    known = numbers[~np.isnan(numbers)].tolist()
    try:
        value = _COMPUTE[how](known) if known else math.nan
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _choose_majority(numbers: Sequence[float]) -> float:
    # Of equally frequent ones, Counter lists the one first that came first.
    return Counter(numbers).most_common(1)[0][0]


_COMPUTE: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "median": median,
    "min": min,
    "max": max,
    "majority": _choose_majority,
    "all": min,  # Of truth as 0 and 1.
}
"""By key of `job.select.Combined`."""


def _describe(name: str, column: _Noted, combined: NDArray[np.float64]) -> CombinedColumn:
    """Return the column with the type of its values."""
    kind, options = "double", None
    if column.how == "all":
        kind, options = "bool", [False, True]
    elif column.how == "majority":
        kind, options = _unify([*column.options])
    return CombinedColumn(kept=KeptColumn(name=name, type=kind), numbers=combined, options=options)


def _unify(texts: list[str]) -> tuple[str, list[Any]]:
    """Return type and values of JSON `texts` in one type: JSON itself if they have none in common."""
    values = [json.loads(text) for text in texts]
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return "string", [value.encode(errors="replace").decode() for value in values]
    if kinds == {bool}:
        return "bool", values
    if kinds <= {int, float} and all(abs(value) <= _LARGEST for value in values):
        return ("int64", values) if kinds == {int} else ("double", [float(value) for value in values])
    return "string", texts
