"""Decides which samples of a run are kept, in one pass over the columns that its expressions read.

`combine` is a pass of its own before it. Memory is some fifty bytes for each sample, whatever the size of its
text.
"""

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs.records.expressions import (
    ID,
    Expression,
    ExpressionFailed,
    SampleNames,
    read_number,
)
from synthia_batch.job.select import Select, identify_patterns
from synthia_batch.results.select.benchmark import NO_ROW, Benchmark
from synthia_batch.results.select.combine import Combined, Combiner
from synthia_batch.results.select.compare import DIGEST_BYTES, digest_value, sign_value
from synthia_batch.results.select.names import PLACE, ROW_INDEX, add_combined, choose_run
from synthia_batch.results.select.near import SIGNATURE_BYTES, check_library, find_near
from synthia_batch.results.select.verdicts import Decisions, Verdict

_COMPARED = re.compile(r"\(*(.+?)\s*[<>]=?\s*[-+\d.e]+\)*")
ReadSamples = Callable[[tuple[str, ...]], Iterable[Mapping[str, Any]]]
"""Returns the finished samples of a run in their order, with these columns."""


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the pass notes of each sample: digests of its row and of what `dedup` compares, and its draw.

    `matches` are rows of the benchmark. The faults of `dedup` and of the benchmark's expression count only if
    the sample is still there then.
    """

    faults: dict[int, str]
    verdicts: bytearray = field(default_factory=bytearray)
    rows: bytearray = field(default_factory=bytearray)
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    digests: bytearray = field(default_factory=bytearray)
    matches: "array[int]" = field(default_factory=lambda: array("q"))
    draws: bytearray = field(default_factory=bytearray)
    dedup_faults: dict[int, str] = field(default_factory=dict)
    benchmark_faults: dict[int, str] = field(default_factory=dict)


class Selector:
    """Decides by the expressions of `select`. `names` are those behind it."""

    def __init__(self, select: Select, names: SampleNames) -> None:
        """Compile the expressions, and find the benchmark."""
        self._select, combine = select, select.combine
        self._combiner = None
        if combine is not None:
            run = choose_run(names, combine.per or names.job, "combine.per")
            self._combiner = Combiner(combine, run, names)
            names = add_combined(names, combine)
        self.names = names
        self._where = None if select.where is None else Expression("where", select.where, names)
        self._best = None if select.best is None else Expression("best", select.best, names)
        self._dedup = None if select.dedup is None else Expression("dedup", select.dedup.on, names)
        self._near = None if select.dedup is None else select.dedup.near
        step = select.decontaminate
        self._on = None if step is None else Expression("decontaminate.on", step.on, names)
        self._benchmark = None if step is None else Benchmark(step)
        self._run = choose_run(names, select.per) if self._best is not None else names.job
        self._is_own = self._run == names.job
        used = [*self._used, *(self._combiner.expressions.values() if self._combiner is not None else ())]
        self.facts: dict[str, Any] = {} if self._near is None else {"minhash": check_library()}
        self.facts |= {} if self._benchmark is None else {"benchmark": self._benchmark.digests}
        self.facts |= identify_patterns(one.text for one in used)
        """What decides beside the steps and the samples, for the identity."""

    @property
    def _used(self) -> list[Expression]:
        steps = (self._where, self._best, self._dedup, self._on)
        return [one for one in steps if one is not None]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the run that steps behind `combine` need."""
        row = {self.names.locate(self._run, ROW_INDEX), self.names.locate(self._run, ID)}
        made = self._select.combine.values if self._select.combine is not None else ()
        return tuple(sorted({*PLACE, *row}.union(*(one.columns for one in self._used)) - {*made}))

    def decide(self, read: ReadSamples) -> Decisions:
        """Return the verdicts on the finished samples of a run, which are read once, with `combine` twice."""
        combined = None if self._combiner is None else self._combiner.combine(read(self._combiner.columns))
        noted = _Noted({} if combined is None else dict(combined.faults))
        for number, values in enumerate(read(self.columns)):
            try:
                noted.verdicts.append(self._judge(values, noted, combined))
            except ExpressionFailed as exc:
                noted.faults[number] = str(exc)
                noted.verdicts.append(Verdict.FAILED)
            _fill(noted, number + 1, self._digest_bytes)
        verdicts = np.frombuffer(noted.verdicts, np.uint8).copy()
        decisions = Decisions(
            select=self._select,
            verdicts=verdicts,
            original=np.full(len(verdicts), -1, np.int64) if combined is None else combined.original.copy(),
            similarity=np.full(len(verdicts), np.nan, np.float32),
            matches=np.frombuffer(noted.matches, np.int64),
            benchmark=self._benchmark,
            faults=noted.faults,
            combined=combined,
        )
        if self._best is not None:
            rows, scores = np.frombuffer(noted.rows, np.uint64), np.frombuffer(noted.scores, np.float64)
            _drop_worse(verdicts, rows, scores, self._select.top)
        if self._dedup is not None:
            _fail_kept(verdicts, noted.faults, noted.dedup_faults)
            self._drop_duplicates(decisions, noted.digests)
        if self._benchmark is not None:
            _fail_kept(verdicts, noted.faults, noted.benchmark_faults)
            verdicts[(verdicts == Verdict.KEPT) & (decisions.matches != NO_ROW)] = Verdict.CONTAMINATED
        kept = np.flatnonzero(verdicts == Verdict.KEPT)
        if self._select.limit is not None:
            verdicts[kept[self._select.limit :]] = Verdict.LIMIT
            kept = kept[: self._select.limit]
        if self._select.sample is not None:
            draws = np.frombuffer(noted.draws, np.uint64)[kept]
            verdicts[kept[np.argsort(draws, kind="stable")[self._select.sample :]]] = Verdict.NOT_DRAWN
        return decisions

    def describe_values(self, read: ReadSamples) -> list[str]:
        """Return the lowest and highest value of each expression that `where` compares with a number."""
        clauses = re.split(r"\s+(?:and|or)\s+", self._select.where or "")
        texts = [found[1] for clause in clauses if (found := _COMPARED.fullmatch(clause.strip()))]
        lines = []
        for text in dict.fromkeys(texts):
            try:
                expression = Expression("where", text, self.names)
                samples = read(expression.columns)
                values = np.fromiter(map(read_number, map(expression.evaluate, samples)), np.float64)
            except (UsageError, ExpressionFailed, KeyError):
                continue  # By itself it is no expression, or it is of a combined value.
            values = values[~np.isnan(values)]
            told = f"{values.min():g} to {values.max():g}" if len(values) else "no number"
            lines.append(f"{text} is {told}")
        return lines

    @property
    def _digest_bytes(self) -> int:
        return DIGEST_BYTES if self._near is None else SIGNATURE_BYTES

    def _judge(self, values: Mapping[str, Any], noted: _Noted, combined: Combined | None) -> Verdict:
        """Return the verdict on a sample alone, and note what the others are compared by."""
        number = len(noted.verdicts)
        if combined is not None:
            if number in combined.faults:
                return Verdict.FAILED
            if combined.original[number] >= 0:
                return Verdict.COMBINED
            values = {**values, **combined.read(number)}
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
                noted.digests.extend(digest_value(value) if self._near is None else sign_value(value))
            except ExpressionFailed as exc:
                noted.dedup_faults[number] = str(exc)
        if self._on is not None and self._benchmark is not None:
            try:
                noted.matches.append(self._benchmark.find(self._on.evaluate(values)))
            except ExpressionFailed as exc:
                noted.benchmark_faults[number] = str(exc)
        if self._select.sample is not None:
            place = "/".join(str(values[name]) for name in PLACE)
            noted.draws.extend(blake3(f"{self._select.seed}/{place}".encode()).digest(length=8))
        return Verdict.KEPT

    def _drop_duplicates(self, decisions: Decisions, noted: bytearray) -> None:
        verdicts, original = decisions.verdicts, decisions.original
        if self._near is None:
            digests = np.frombuffer(noted, np.uint64).reshape(-1, DIGEST_BYTES // 8)
            _drop_equal(verdicts, digests, original)
            return
        signatures = np.frombuffer(noted, np.uint32).reshape(-1, SIGNATURE_BYTES // 4)
        kept = np.flatnonzero((verdicts == Verdict.KEPT) & signatures.any(axis=1))
        for found in find_near(signatures, kept, self._near):
            verdicts[found.number] = Verdict.DUPLICATE
            original[found.number] = found.original
            decisions.similarity[found.number] = found.similarity


def _fail_kept(verdicts: NDArray[np.uint8], faults: dict[int, str], of_step: Mapping[int, str]) -> None:
    """Fail the samples that are still there of those on which a step's expression failed."""
    for number, fault in of_step.items():
        if verdicts[number] == Verdict.KEPT:
            verdicts[number], faults[number] = Verdict.FAILED, fault


def _fill(noted: _Noted, count: int, digest_bytes: int) -> None:
    """Note zeros for a sample that is not compared, so that each column has `count` entries."""
    if len(noted.scores) < count:
        noted.scores.append(math.nan)
    noted.rows.extend(bytes(8 * count - len(noted.rows)))
    noted.digests.extend(bytes(digest_bytes * count - len(noted.digests)))
    if len(noted.matches) < count:
        noted.matches.append(NO_ROW)
    noted.draws.extend(bytes(8 * count - len(noted.draws)))


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


def _drop_equal(
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
