"""What becomes of each sample of a run in a selection, and why."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.types import KeptColumn
from synthia_batch.job.select import EXPRESSION_FAILED, NOT_SELECTED, Select
from synthia_batch.results.select.benchmark import Benchmark
from synthia_batch.results.select.combine import Combined


class Verdict(IntEnum):
    """What becomes of a sample."""

    KEPT = 0
    FAILED = 1
    COMBINED = 2
    WHERE = 3
    NO_SCORE = 4
    NOT_BEST = 5
    DUPLICATE = 6
    CONTAMINATED = 7
    LIMIT = 8
    NOT_DRAWN = 9


def count_not_selected(dropped: Mapping[str, int]) -> int:
    """Return how many samples a step has `dropped`, without those on which an expression failed."""
    return sum(count for step, count in dropped.items() if step != Verdict.FAILED.name.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The verdict on each sample of a run that has finished, in their order.

    `original` is the number of the sample that another one is combined into, or a duplicate of, else -1.
    `similarity` is that of the two if they were not compared for equality, else NaN. `matches` are the rows
    of the `benchmark` that samples share words with. `faults` says why an expression failed, by the sample's
    number. `combined` has the values of those that others were combined into.
    """

    select: Select
    verdicts: NDArray[np.uint8]
    original: NDArray[np.int64]
    similarity: NDArray[np.float32]
    matches: NDArray[np.int64]
    benchmark: Benchmark | None
    faults: Mapping[int, str]
    combined: Combined | None

    @property
    def kept(self) -> int:
        """The number of samples that are kept."""
        return int((self.verdicts == Verdict.KEPT).sum())

    def count(self) -> dict[str, int]:
        """Return how many samples each step has dropped."""
        found = Counter(self.verdicts.tolist())
        return {verdict.name.lower(): found[verdict] for verdict in Verdict if found[verdict]}

    @property
    def added(self) -> tuple[KeptColumn, ...]:
        return () if self.combined is None else tuple(column.kept for column in self.combined.columns)

    def read(self, number: int) -> Mapping[str, Any]:
        """Return the combined values of a sample that is kept, by name."""
        return {} if self.combined is None else self.combined.read(number)

    def explain(self, number: int, name: Callable[[int], str]) -> tuple[str, str]:
        """Return code and message of a sample that is not kept; `name` returns that of another."""
        select = self.select
        match Verdict(self.verdicts[number]):
            case Verdict.FAILED:
                return EXPRESSION_FAILED, self.faults[number]
            case Verdict.COMBINED:
                message = f"combined into {name(int(self.original[number]))}"
            case Verdict.WHERE:
                message = f"where: {select.where}"
            case Verdict.NO_SCORE:
                message = f"best: {select.best}: it has no number here"
            case Verdict.NOT_BEST:
                which = "the best" if select.top == 1 else f"among the best {select.top}"
                message = f"not {which} of its row: {select.best}"
            case Verdict.DUPLICATE:
                message = self._explain_duplicate(number, name)
            case Verdict.CONTAMINATED:
                message = self._explain_contaminated(number)
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

    def _explain_contaminated(self, number: int) -> str:
        if self.benchmark is None or self.select.decontaminate is None:
            raise ValueError("there is no benchmark")
        row = self.benchmark.name(int(self.matches[number]))
        return f"shares words with {row}: {self.select.decontaminate.on}"
