"""Pairs of a better and a worse answer to the same prompt, for preference training. Pure."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean, mean
from typing import Any

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Message
from synthia_batch.inputs.records.expressions import Expression, ExpressionFailed, SampleNames, read_number
from synthia_batch.results.read.samples import FinishedSample
from synthia_batch.results.select.names import choose_run, name_samples
from synthia_batch.results.verify.facts import read_facts


@dataclass(slots=True)
class Answer:
    """An answer with its prompt, and the scores that samples of the run gave to it."""

    prompt: tuple[Message, ...]
    message: Message
    scores: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean of its scores."""
        try:
            return fmean(self.scores)
        except OverflowError:  # Only of their sum, which the slower function does not compute in floats.
            return mean(self.scores)


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of the highest and of the lowest score to one prompt."""

    chosen: Answer
    rejected: Answer


def open_pairer(
    directory: Path, score: str, per: str | None, *, min_gap: float = 0.0, drops_truncated: bool = False
) -> "Pairer":
    """Return the pairer of the run in `directory`. `per` names the run whose answers are paired."""
    names = name_samples(read_facts(directory))
    return Pairer(
        score=Expression("score", score, names),
        names=names,
        run=choose_run(names, per),
        min_gap=min_gap,
        drops_truncated=drops_truncated,
    )


@dataclass(slots=True, kw_only=True)
class Pairer:
    """Pairs the answers of `run`, one of `names.runs`, by the mean of their scores.

    Answers to one prompt are compared: of one row and one system message, and with equal turns before them.
    Of equal scores the earlier answer is chosen, or rejected; one with the chosen one's text is not rejected.
    `left_out` counts the prompts without a pair: fewer than two different answers have a number as their
    score, or the scores are not more than `min_gap` apart. `faults` counts the samples on which the
    expression failed, `first_fault` says how.
    """

    score: Expression
    names: SampleNames
    run: str
    min_gap: float = 0.0
    drops_truncated: bool = False
    left_out: int = 0
    faults: int = 0
    first_fault: str = ""

    @property
    def is_own(self) -> bool:
        """Whether the answers are the run's own, not those of an earlier one."""
        return self.run == self.names.job

    @property
    def needs_logprobs(self) -> bool:
        """Whether the score is computed from log-probabilities."""
        return "logprobs" in self.score.columns

    def list_kept(self) -> tuple[str, ...]:
        """Return the kept columns that the pairs need."""
        return tuple(sorted({*self.score.kept, *(() if self.is_own else (self.run,))}))

    def pair(self, samples: Iterable[FinishedSample]) -> Iterator[Pair]:
        """Yield the pairs of `samples`, which are in the order of their rows."""
        for _, group in groupby(samples, key=self._find_row):
            for answers in self._collect(group):
                pair = self._choose(answers)
                if pair is None:
                    self.left_out += 1
                else:
                    yield pair

    def _find_row(self, sample: FinishedSample) -> tuple[Any, ...]:
        if self.is_own:
            return sample.row_index, sample.id, sample.system
        answer = sample.kept[self.run] or {}
        return answer.get("row_index"), answer.get("id"), answer.get("system")

    def _collect(self, samples: Iterable[FinishedSample]) -> Iterator[list[Answer]]:
        """Yield the answers of a row with their scores, those to each prompt in a list."""
        answers: dict[int, Answer] = {}
        for sample in samples:
            answer = self._read_answer(sample)
            if answer is None:
                continue
            index, made = answer
            known, score = answers.setdefault(index, made), self._rate(sample)
            if not math.isnan(score):
                known.scores.append(score)
        prompts: dict[str, list[Answer]] = {}
        for one in answers.values():
            key = json.dumps([message.to_dict() for message in one.prompt])
            prompts.setdefault(key, []).append(one)
        yield from prompts.values() or [[]]  # Every answer of the row was cut off.

    def _read_answer(self, sample: FinishedSample) -> tuple[int, Answer] | None:
        """Return the answer that `sample` is, or is about, with its number; None if it is left out."""
        if self.is_own:
            index, messages, reason = sample.sample_index, list(sample.messages), sample.finish_reason
        else:
            answer: Mapping[str, Any] = sample.kept[self.run] or {}
            if not answer.get("messages"):
                return None
            index, reason = answer["sample_index"], answer["finish_reason"]
            whole = answer.get("messages_json")
            messages = [
                Message.from_dict(turn) for turn in (json.loads(whole) if whole else answer["messages"])
            ]
        if self.drops_truncated and reason == CUT_OFF:
            return None
        return index, Answer(tuple(messages[:-1]), messages[-1])

    def _rate(self, sample: FinishedSample) -> float:
        own = {name: getattr(sample, name, None) for name in self.names.runs[self.names.job]}
        try:
            return read_number(self.score.evaluate({**own, **sample.kept}))
        except ExpressionFailed as exc:
            self.faults += 1
            self.first_fault = self.first_fault or str(exc)
            return math.nan

    def _choose(self, answers: Iterable[Answer]) -> Pair | None:
        rated = [answer for answer in answers if answer.scores]
        if not rated:
            return None
        chosen = max(rated, key=lambda answer: answer.score)
        others = [answer for answer in rated if answer.message != chosen.message]
        rejected = min(others, key=lambda answer: answer.score, default=chosen)
        return Pair(chosen, rejected) if chosen.score - rejected.score > self.min_gap else None
