"""Decides which samples of a run are kept, in one pass over the columns that its expressions read.

Memory is some fifty bytes for each sample, whatever the size of its text.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from enum import IntEnum
from typing import Any

import numpy as np
from blake3 import blake3
from jinja2 import Undefined
from numpy.typing import NDArray

from synthia_batch.inputs.records.expressions import (
    ID,
    Expression,
    ExpressionFailed,
    SampleNames,
    read_number,
)
from synthia_batch.job.select import EXPRESSION_FAILED, NOT_SELECTED, Select, identify_patterns
from synthia_batch.results.select.names import choose_run
from synthia_batch.results.select.near import SIGNATURE_BYTES, check_library, find_near, sign

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

    `original` is the number of the sample of which a duplicate is one, else -1, and `similarity` that of the
    two if they were not compared for equality, else NaN. `faults` says why an expression failed, by the
    sample's number.
    """

    select: Select
    verdicts: NDArray[np.uint8]
    original: NDArray[np.int64]
    similarity: NDArray[np.float32]
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
                message = self._explain_duplicate(number, name)
            case Verdict.LIMIT:
                message = f"behind the limit of {select.limit}"
            case Verdict.NOT_DRAWN:
                message = f"not drawn: {select.sample} by the seed {select.seed}"
            case Verdict.KEPT:
                raise ValueError(f"sample {number} is kept")
        return NOT_SELECTED, message

    def _explain_duplicate(self, number: int, name: Callable[[int], str]) -> str:
        on = self.select.dedup.on if self.select.dedup is not None else ""
        similarity = float(self.similarity[number])
        how = "" if math.isnan(similarity) else f", similarity {similarity:.2f}"
        return f"duplicate of {name(int(self.original[number]))}{how}: {on}"


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the pass notes of each sample: digests of its row and of what `dedup` compares, and its draw."""

    verdicts: bytearray = field(default_factory=bytearray)
    rows: bytearray = field(default_factory=bytearray)
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    digests: bytearray = field(default_factory=bytearray)
    draws: bytearray = field(default_factory=bytearray)
    dedup_faults: dict[int, str] = field(default_factory=dict)


class Selector:
    """Decides by the expressions of `select`. `columns` are those of the run that it needs."""

    def __init__(self, select: Select, names: SampleNames) -> None:
        """Compile the expressions. Raises UsageError for one that is wrong, or a library that is missing."""
        self._select = select
        self._where = None if select.where is None else Expression("where", select.where, names)
        self._best = None if select.best is None else Expression("best", select.best, names)
        self._dedup = None if select.dedup is None else Expression("dedup", select.dedup.on, names)
        self._near = None if select.dedup is None else select.dedup.near
        used = [one for one in (self._where, self._best, self._dedup) if one is not None]
        self.facts = {} if self._near is None else {"minhash": check_library()}
        self.facts |= identify_patterns(one.text for one in used)
        """What decides beside the steps and the samples, for the identity."""
        self._run = choose_run(names, select.per) if self._best is not None else names.job
        self._is_own = self._run == names.job
        row = {names.locate(self._run, ROW_INDEX), names.locate(self._run, ID)}
        self.columns = tuple(sorted({*PLACE, *row}.union(*(one.columns for one in used))))

    def decide(self, samples: Iterable[Mapping[str, Any]]) -> Decisions:
        """Return the verdicts on `samples`, the finished ones of a run in their order, with `columns`."""
        noted, faults = _Noted(), {}
        for number, values in enumerate(samples):
            try:
                noted.verdicts.append(self._judge(values, noted))
            except ExpressionFailed as exc:
                faults[number] = str(exc)
                noted.verdicts.append(Verdict.FAILED)
            _fill(noted, number + 1, self._digest_bytes)
        verdicts = np.frombuffer(noted.verdicts, np.uint8).copy()
        original = np.full(len(verdicts), -1, np.int64)
        similarity = np.full(len(verdicts), np.nan, np.float32)
        if self._best is not None:
            rows, scores = np.frombuffer(noted.rows, np.uint64), np.frombuffer(noted.scores, np.float64)
            _drop_worse(verdicts, rows, scores, self._select.top)
        if self._dedup is not None:
            for number, fault in noted.dedup_faults.items():
                if verdicts[number] == Verdict.KEPT:
                    verdicts[number], faults[number] = Verdict.FAILED, fault
            if self._near is None:
                digests = np.frombuffer(noted.digests, np.uint64).reshape(-1, DIGEST_BYTES // 8)
                _drop_duplicates(verdicts, digests, original)
            else:
                signatures = np.frombuffer(noted.digests, np.uint32).reshape(-1, SIGNATURE_BYTES // 4)
                kept = np.flatnonzero((verdicts == Verdict.KEPT) & signatures.any(axis=1))
                for found in find_near(signatures, kept, self._near):
                    verdicts[found.number] = Verdict.DUPLICATE
                    original[found.number], similarity[found.number] = found.original, found.similarity
        kept = np.flatnonzero(verdicts == Verdict.KEPT)
        if self._select.limit is not None:
            verdicts[kept[self._select.limit :]] = Verdict.LIMIT
            kept = kept[: self._select.limit]
        if self._select.sample is not None:
            draws = np.frombuffer(noted.draws, np.uint64)[kept]
            verdicts[kept[np.argsort(draws, kind="stable")[self._select.sample :]]] = Verdict.NOT_DRAWN
        return Decisions(
            select=self._select, verdicts=verdicts, original=original, similarity=similarity, faults=faults
        )

    @property
    def _digest_bytes(self) -> int:
        return DIGEST_BYTES if self._near is None else SIGNATURE_BYTES

    def _judge(self, values: Mapping[str, Any], noted: _Noted) -> Verdict:
        """Return the verdict on a sample alone, and note what the others are compared by."""
        if self._where is not None and not self._where.evaluate(values):
            return Verdict.WHERE
        if self._best is not None:
            score = read_number(self._best.evaluate(values))
            sample = values if self._is_own else values[self._run]
            if math.isnan(score) or sample is None:
                return Verdict.NO_SCORE
            # Runs that were read together may have other rows of equal numbers.
            row = f"{sample[ROW_INDEX]}/{sample[ID]}".encode()
            noted.rows.extend(blake3(row).digest(length=8))
            noted.scores.append(score)
        if self._dedup is not None:
            try:
                value = self._dedup.evaluate(values)
                noted.digests.extend(_digest(value) if self._near is None else _sign(value))
            except ExpressionFailed as exc:  # It counts only if the sample is still there then.
                noted.dedup_faults[len(noted.verdicts)] = str(exc)
        if self._select.sample is not None:
            place = "/".join(str(values[name]) for name in PLACE)
            noted.draws.extend(blake3(f"{self._select.seed}/{place}".encode()).digest(length=8))
        return Verdict.KEPT


def _fill(noted: _Noted, count: int, digest_bytes: int) -> None:
    """Note zeros for a sample that is not compared, so that each column has `count` entries."""
    if len(noted.scores) < count:
        noted.scores.append(math.nan)
    noted.rows.extend(bytes(8 * count - len(noted.rows)))
    noted.digests.extend(bytes(digest_bytes * count - len(noted.digests)))
    noted.draws.extend(bytes(8 * count - len(noted.draws)))


def _digest(value: Any) -> bytes:
    """Return what equal values have in common; zeros for nothing, which equals nothing."""
    if isinstance(value, Undefined):
        return bytes(DIGEST_BYTES)
    return blake3(_encode(value).encode()).digest(length=DIGEST_BYTES)


def _sign(value: Any) -> bytes:
    """Return the signature of a text, or of the JSON of any other value; zeros for nothing."""
    if isinstance(value, Undefined):
        return bytes(SIGNATURE_BYTES)
    return sign(value if isinstance(value, str) else _encode(value))


def _encode(value: Any) -> str:
    """Return a text that equal values have in common. Raises ExpressionFailed if that cannot be known."""
    try:
        return json.dumps(value, sort_keys=True, default=_spell)
    except (TypeError, ValueError) as exc:
        raise ExpressionFailed(f"it cannot be compared: {exc}") from exc


def _spell(value: Any) -> Any:
    """Return a value that JSON has no form for, such as a date, as its type and text; nothing as null."""
    if isinstance(value, Undefined):
        return None
    if isinstance(value, Iterator):
        return list(value)
    if isinstance(value, date | time | timedelta | Decimal | bytes):
        return [type(value).__name__, str(value)]
    raise TypeError(f"a {type(value).__name__} has no text of its own")


def _drop_worse(
    verdicts: NDArray[np.uint8], rows: NDArray[np.uint64], scores: NDArray[np.float64], top: int
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
