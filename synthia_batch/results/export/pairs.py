"""Pairs of a better and a worse answer to the same row, for preference training. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.results.read.samples import FinishedSample
from synthia_batch.results.select.expressions import ID, Expression, ExpressionFailed, SampleNames
from synthia_batch.results.select.names import choose_run, name_samples
from synthia_batch.results.verify.facts import read_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An answer with its prompt, its score, and what is kept with it. `row` is that of its run."""

    row: int
    system: str
    prompt: tuple[Message, ...]
    answer: Message
    score: float
    kept: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of the highest and of the lowest score to one prompt."""

    chosen: Scored
    rejected: Scored


def open_pairer(directory: Path, score: str, per: str | None, min_gap: float) -> "Pairer":
    """Return the pairer of the run in `directory`. `per` names the run whose answers are paired.

    Raises:
        UsageError: `score` is no expression about the run's samples, or there is no such run.
    """
    names = name_samples(read_facts(directory))
    run = choose_run(names, per)
    return Pairer(score=Expression("score", score, names), names=names, run=run, min_gap=min_gap)


@dataclass(slots=True)
class Pairer:
    """Pairs the answers of `run`, one of `names.runs`, by `score`.

    Answers are compared that have one row and one system message, and so one prompt. Of equal scores the
    earlier answer is chosen, or rejected. `left_out` counts the prompts without a pair: fewer than two of
    their answers have a number as their score, or the scores are not more than `min_gap` apart.
    """

    score: Expression
    names: SampleNames
    run: str
    min_gap: float = 0.0
    left_out: int = 0

    def list_kept(self) -> tuple[str, ...]:
        """Return the kept columns that the pairs need."""
        used = {self.run, *(path.partition(".")[0] for path in self.score.columns)}
        return tuple(sorted(used - {ID, *self.names.runs[self.names.job]} - {self.names.job}))

    def pair(self, samples: Iterable[FinishedSample]) -> Iterator[Pair]:
        """Yield the pairs of `samples`, which are in the order of their rows."""
        for _, group in groupby(map(self._rate, samples), key=attrgetter("row", "system")):
            rated = [answer for answer in group if not math.isnan(answer.score)]
            chosen = max(rated, key=attrgetter("score"), default=None)
            rejected = min(rated, key=attrgetter("score"), default=None)
            if chosen is None or rejected is None or chosen.score - rejected.score <= self.min_gap:
                self.left_out += 1
            else:
                yield Pair(chosen, rejected)

    def _rate(self, sample: FinishedSample) -> Scored:
        """Return the answer of `sample` with its score, NaN if it has none."""
        own: dict[str, Any] = {name: getattr(sample, name, None) for name in self.names.runs[self.names.job]}
        values = {**own, **sample.kept}
        try:
            score = self.score.evaluate(values)
        except ExpressionFailed:
            score = math.nan
        answer: Mapping[str, Any] = own if self.run == self.names.job else sample.kept[self.run]
        *prompt, last = (
            message if isinstance(message, Message) else Message.from_dict(message)
            for message in answer["messages"]
        )
        return Scored(
            row=answer["row_index"],
            system=answer["system"],
            prompt=tuple(prompt),
            answer=last,
            score=score if isinstance(score, int | float) else math.nan,
            kept=sample.kept,
        )
