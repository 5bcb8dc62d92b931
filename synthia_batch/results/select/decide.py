"""Decides which samples of a run are kept, in one pass over the columns that its expressions read.

Memory is some fifty bytes for each sample, whatever the size of its text.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from synthia_batch.core.digest import canonical_json
from synthia_batch.job.select import EXPRESSION_FAILED, NOT_SELECTED, Select
from synthia_batch.results.select.expressions import ID, NOTHING, Expression, ExpressionFailed, SampleNames
from synthia_batch.results.select.names import choose_run

DIGEST_BYTES = 16
PLACE = (ID, "system", "sample_index")
"""The columns that name a sample of a run."""
ROW_INDEX = "row_index"


class Verdict(IntEnum):
    """What becomes of a sample."""

    KEPT = 0
    FAILED = 1
    WHERE = 2
    NO_SCORE = 3
    NOT_BEST = 4
    DUPLICATE = 5
    LIMIT = 6
    NOT_DRAWN = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The verdict on each sample of a run that has finished, in their order.

    `original` is the number of the sample of which a duplicate is one, else -1; `faults` says why an
    expression failed, by the sample's number.
    """

    select: Select
    verdicts: NDArray[np.uint8]
    original: NDArray[np.int64]
    faults: Mapping[int, str]

    @property
    def kept(self) -> int:
        """The number of samples that are kept."""
        return int((self.verdicts == Verdict.KEPT).sum())

    def count(self) -> dict[str, int]:
        """Return how many samples each step has dropped."""
        found = Counter(self.verdicts.tolist())
        return {verdict.name.lower(): found[verdict] for verdict in Verdict if found[verdict]}

    def explain(self, number: int, name: Callable[[int], str]) -> tuple[str, str]:
        """Return code and message of a sample that is not kept; `name` returns that of another."""
        select = self.select
        match Verdict(self.verdicts[number]):
            case Verdict.FAILED:
                return EXPRESSION_FAILED, self.faults[number]
            case Verdict.WHERE:
                message = f"where: {select.where}"
            case Verdict.NO_SCORE:
                message = f"best: {select.best}: it has no number here"
            case Verdict.NOT_BEST:
                which = "the best" if select.top == 1 else f"among the best {select.top}"
                message = f"not {which} of its row: {select.best}"
            case Verdict.DUPLICATE:
                message = f"duplicate of {name(int(self.original[number]))}: {select.dedup}"
            case Verdict.LIMIT:
                message = f"behind the limit of {select.limit}"
            case Verdict.NOT_DRAWN:
                message = f"not drawn: {select.sample} by the seed {select.seed}"
            case Verdict.KEPT:
                raise ValueError(f"sample {number} is kept")
        return NOT_SELECTED, message


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the pass notes of each sample: `digests` of the value of `dedup`, `draws` for `sample`."""

    verdicts: bytearray = field(default_factory=bytearray)
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    digests: bytearray = field(default_factory=bytearray)
    draws: bytearray = field(default_factory=bytearray)


class Selector:
    """Decides by the expressions of `select`. `columns` are those of the run that it needs."""

    def __init__(self, select: Select, names: SampleNames) -> None:
        """Compile the expressions. Raises UsageError for one that is wrong."""
        self._select = select
        self._where = None if select.where is None else Expression("where", select.where, names)
        self._best = None if select.best is None else Expression("best", select.best, names)
        self._dedup = None if select.dedup is None else Expression("dedup", select.dedup, names)
        used = [one for one in (self._where, self._best, self._dedup) if one is not None]
        self._run = choose_run(names, select.per) if self._best is not None else names.job
        self._is_own = self._run == names.job
        self.columns = tuple(
            sorted({*PLACE, names.locate(self._run, ROW_INDEX)}.union(*(one.columns for one in used)))
        )

    def decide(self, samples: Iterable[Mapping[str, Any]]) -> Decisions:
        """Return the verdicts on `samples`, the finished ones of a run in their order, with `columns`."""
        noted, faults = _Noted(), {}
        for number, values in enumerate(samples):
            try:
                noted.verdicts.append(self._judge(values, noted))
            except ExpressionFailed as exc:
                faults[number] = str(exc)
                noted.verdicts.append(Verdict.FAILED)
            _fill(noted, number + 1)
        verdicts = np.frombuffer(noted.verdicts, np.uint8).copy()
        original = np.full(len(verdicts), -1, np.int64)
        if self._best is not None:
            rows, scores = np.frombuffer(noted.rows, np.int64), np.frombuffer(noted.scores, np.float64)
            _drop_worse(verdicts, rows, scores, self._select.top)
        if self._dedup is not None:
            _drop_duplicates(verdicts, np.frombuffer(noted.digests, np.uint64).reshape(-1, 2), original)
        kept = np.flatnonzero(verdicts == Verdict.KEPT)
        if self._select.limit is not None:
            verdicts[kept[self._select.limit :]] = Verdict.LIMIT
            kept = kept[: self._select.limit]
        if self._select.sample is not None:
            draws = np.frombuffer(noted.draws, np.uint64)[kept]
            verdicts[kept[np.argsort(draws, kind="stable")[self._select.sample :]]] = Verdict.NOT_DRAWN
        return Decisions(select=self._select, verdicts=verdicts, original=original, faults=faults)

    def _judge(self, values: Mapping[str, Any], noted: _Noted) -> Verdict:
        """Return the verdict on a sample alone, and note what the others are compared by."""
        if self._where is not None and not self._where.evaluate(values):
            return Verdict.WHERE
        if self._best is not None:
            score = self._best.evaluate(values)
            if not isinstance(score, int | float) or math.isnan(score):
                return Verdict.NO_SCORE
            sample = values if self._is_own else values[self._run]
            noted.rows.append(sample[ROW_INDEX])
            noted.scores.append(score)
        if self._dedup is not None:
            noted.digests.extend(_digest(self._dedup, values))
        if self._select.sample is not None:
            place = "/".join(str(values[name]) for name in PLACE)
            noted.draws.extend(blake3(f"{self._select.seed}/{place}".encode()).digest(length=8))
        return Verdict.KEPT


def _fill(noted: _Noted, count: int) -> None:
    """Note zeros for a sample that is not compared, so that each column has `count` entries."""
    if len(noted.rows) < count:
        noted.rows.append(-1)
        noted.scores.append(math.nan)
    noted.digests.extend(bytes(DIGEST_BYTES * count - len(noted.digests)))
    noted.draws.extend(bytes(8 * count - len(noted.draws)))


def _digest(expression: Expression, values: Mapping[str, Any]) -> bytes:
    """Return what equal values have in common; zeros for nothing, which equals nothing."""
    value = expression.evaluate(values)
    if value is NOTHING:
        return bytes(DIGEST_BYTES)
    try:
        return blake3(canonical_json(value)).digest(length=DIGEST_BYTES)
    except (TypeError, ValueError) as exc:
        raise ExpressionFailed(f"{expression.text}: its value is no text, number, list or object") from exc


def _drop_worse(
    verdicts: NDArray[np.uint8], rows: NDArray[np.int64], scores: NDArray[np.float64], top: int
) -> None:
    """Keep of each row the `top` samples of the highest scores, of equal ones the earlier."""
    kept = np.flatnonzero(verdicts == Verdict.KEPT)
    order = kept[np.lexsort((kept, -scores[kept], rows[kept]))]
    of_row = rows[order]
    starts = np.flatnonzero(np.r_[True, of_row[1:] != of_row[:-1]]) if len(order) else order
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    verdicts[order[rank >= top]] = Verdict.NOT_BEST


def _drop_duplicates(
    verdicts: NDArray[np.uint8], digests: NDArray[np.uint64], original: NDArray[np.int64]
) -> None:
    """Keep the first of the samples with one digest; zeros are different from each other."""
    kept = np.flatnonzero((verdicts == Verdict.KEPT) & digests.any(axis=1))
    order = kept[np.lexsort((kept, digests[kept, 1], digests[kept, 0]))]
    if not len(order):
        return
    is_first = np.r_[True, (digests[order[1:]] != digests[order[:-1]]).any(axis=1)]
    firsts = order[is_first][np.cumsum(is_first) - 1]
    verdicts[order[~is_first]] = Verdict.DUPLICATE
    original[order[~is_first]] = firsts[~is_first]
