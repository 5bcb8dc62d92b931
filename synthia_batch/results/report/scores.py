"""The scores of a pipeline: numbers that its judges give, or by which it selects. Only reads."""

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs.records.expressions import Expression, ExpressionFailed, read_number
from synthia_batch.results.export.pairs import Pair, open_pairer
from synthia_batch.results.read.run import open_run
from synthia_batch.results.read.shards import PublishedSamples, list_samples
from synthia_batch.results.report.samples import choose_stride, list_strided
from synthia_batch.results.select.names import name_samples
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.storage.parts.selection import iterate_samples

MAX_VALUES = 200_000
MAX_BYTES = 100_000_000
"""Beyond either limit (samples, bytes of parts), only every n-th shard is read, as for a run's answers."""
MAX_BARS = 21
MOST_NUMBER = 1e300
"""A number beyond it is counted as missing: sums of such numbers are no numbers any more."""
PAIRS = 3
PAIRED_SAMPLES = 5_000
"""Pairs are of the first so many samples, which are read with all their text."""
_JSON_NUMBER = re.compile(r"\b[A-Za-z_]\w*\.json(?:\.[A-Za-z_]\w*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An expression, and the run on whose samples it is evaluated. `is_judged`: several say it of one row."""

    text: str
    run: Path
    is_judged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of `rows` with several values, in `equal` all are the same.

    `mean_gap` is the mean difference between the highest and the lowest value of a row.
    """

    rows: int
    equal: int
    mean_gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The values of a score: `bars` are labels and counts, in order of the values.

    `missing` samples have no number, or one beyond MOST_NUMBER. `read` of the `finished` samples were read.
    `agreement` is None if no row has several values from a judge.
    """

    text: str
    read: int
    finished: int
    missing: int
    mean: float | None
    median: float | None
    bars: Sequence[tuple[str, int]]
    agreement: Agreement | None


def list_scores(stages: Sequence[tuple[str, Path, Path | None]]) -> list[Score]:
    """Return the scores of a pipeline's stages, each given as its name, its run and the run that it reads.

    These are the numbers of a stage's JSON schema, what `best` compares, and the numbers of parsed answers
    that `where` reads. None is listed twice.
    """
    found: dict[str, Score] = {}
    for name, run, source in stages:
        identity = read_facts(run).plan["identity"]
        steps = identity.get("select")
        if steps is None:
            scores = [Score(text=f"{name}.json.{key}", run=run) for key in _list_numbers(identity)]
        elif source is not None:
            scores = [*_list_read(steps, run, source)]
        else:
            continue
        for score in scores:
            found.setdefault(score.text, score)
    return [*found.values()]


def _list_numbers(identity: Mapping[str, Any]) -> Iterator[str]:
    schema = json.loads(identity.get("structured", {}).get("json_schema", "{}"))
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for key, kind in (properties or {}).items():
        if key.isidentifier() and isinstance(kind, dict) and kind.get("type") in ("integer", "number"):
            yield key


def _list_read(steps: Mapping[str, Any], run: Path, source: Path) -> Iterator[Score]:
    """Yield what the selection in `run` reads of `source`. Its combined values only its own samples have."""
    combined = {name: value for name, value in steps.get("combine", {}).items() if isinstance(value, Mapping)}
    for name, value in combined.items():
        if not {"majority", "all"} & value.keys():
            yield from (Score(text=text, run=source, is_judged=True) for text in value.values())
            yield Score(text=name, run=run)
    if "best" in steps:
        yield Score(text=steps["best"], run=run if combined else source)
    yield from (Score(text=text, run=source) for text in _JSON_NUMBER.findall(steps.get("where", "")))


@dataclass(slots=True)
class _Values:
    """The numbers of a score, the samples without one, and what the values of a row have in common."""

    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    missing: int = 0
    several: int = 0
    equal: int = 0
    gaps: float = 0.0

    def add_row(self, values: Sequence[float]) -> None:
        if len(values) > 1:
            gap = max(values) - min(values)
            self.several, self.equal, self.gaps = self.several + 1, self.equal + (not gap), self.gaps + gap


def read_distribution(score: Score) -> Distribution | None:
    """Return the distribution of a score; None if no sample has a number, as of a `where` about text."""
    facts = read_facts(score.run)
    names = name_samples(facts)
    try:
        expression = Expression("score", score.text, names)
    except UsageError:  # A part of `where` need not be an expression of its own.
        return None
    published = [one for one in list_samples(facts) if isinstance(one, PublishedSamples)]
    rows = [one.shard_entry.data.rows if one.shard_entry.data else 0 for one in published]
    size = sum(one.text_bytes for one in published)
    stride = choose_stride(sum(rows), size, max_samples=MAX_VALUES, max_bytes=MAX_BYTES)
    values, chosen = _Values(), list_strided(stride, len(published))
    for at in chosen:
        if rows[at]:
            _read_values(facts, published[at], expression, values)
    if not values.numbers:
        return None
    is_judge = score.is_judged or score.text.startswith(f"{names.job}.json.")
    gap = values.gaps / values.several if values.several else 0.0
    return Distribution(
        text=score.text,
        read=sum(rows[at] for at in chosen),
        finished=sum(rows),
        missing=values.missing,
        mean=round(fmean(values.numbers), 3),
        median=round(float(np.median(values.numbers)), 3),
        bars=make_bars(values.numbers),
        agreement=Agreement(rows=values.several, equal=values.equal, mean_gap=round(gap, 3))
        if is_judge and values.several
        else None,
    )


def _read_values(facts: RunFacts, samples: PublishedSamples, score: Expression, values: _Values) -> None:
    columns = tuple(sorted({"row_index", *score.columns}))
    by_row: dict[int, list[float]] = {}
    for sample in iterate_samples(facts.run_dir.data_part(samples.shard), columns):
        try:
            number = read_number(score.evaluate(sample))
        except ExpressionFailed:
            number = math.nan
        if math.isnan(number) or abs(number) > MOST_NUMBER:
            values.missing += 1
        else:
            values.numbers.append(number)
            by_row.setdefault(sample["row_index"], []).append(number)
    for of_row in by_row.values():
        values.add_row(of_row)


def make_bars(numbers: Sequence[float]) -> list[tuple[str, int]]:
    """Return label and count of each value, or of up to twenty equal ranges if there are over MAX_BARS."""
    counts = Counter(numbers)
    if len(counts) <= MAX_BARS:
        return [(f"{value:g}", count) for value, count in sorted(counts.items())]
    if all(value.is_integer() and abs(value) < 2**53 for value in counts):
        low, high = int(min(counts)), int(max(counts))
        width = -(-(high - low + 1) // (MAX_BARS - 1))
        found, edges = np.histogram(np.asarray(numbers), bins=range(low, high + width + 1, width))
        labels = [f"{int(start):,} to {int(stop) - 1:,}" for start, stop in pairwise(edges)]
    else:
        found, edges = np.histogram(np.asarray(numbers), bins=MAX_BARS - 1)
        labels = [f"{start:.4g} to {stop:.4g}" for start, stop in pairwise(edges)]
    return [*zip(labels, found.tolist(), strict=True)]


def read_pairs(score: Score) -> list[Pair]:
    """Return the best and the worst answer to each of the first prompts that have two by this score.

    There are none if it is not known whose answers the score is about, as with several earlier stages.
    """
    try:
        pairer = open_pairer(score.run, score.text, None)
    except UsageError:
        return []
    samples = open_run(score.run).samples(pairer.list_kept(), with_logprobs=pairer.needs_logprobs)
    return [*islice(pairer.pair(islice(samples, PAIRED_SAMPLES)), PAIRS)]
