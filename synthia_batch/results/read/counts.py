"""Counts of a run's samples: token lengths, finish reasons, failures. Holds one shard in memory.

Lengths are counted per exact number of tokens, so every quantile is exact.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.job.select import NOT_SELECTED
from synthia_batch.storage.parts.columns import PartCodes, PartNumbers

QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95}


@dataclass(slots=True)
class LengthHistogram:
    """Histogram of token counts: `counts[n]` samples have n tokens."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, tokens: NDArray[np.int64]) -> None:
        """Add samples by their token counts."""
        self.counts = _sum(self.counts, np.bincount(tokens).astype(np.int64))

    def merge(self, other: "LengthHistogram") -> None:
        self.counts = _sum(self.counts, other.counts)

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @property
    def tokens(self) -> int:
        return int((self.counts * np.arange(len(self.counts))).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest sample, 0 if empty."""
        return max(0, len(np.trim_zeros(self.counts, "b")) - 1)

    def find_quantile(self, share: float) -> int:
        """Return the smallest length that `share` of the samples do not exceed, 0 if empty."""
        if not self.samples:
            return 0
        rank = max(1, int(np.ceil(share * self.samples)))
        return int(np.searchsorted(np.cumsum(self.counts), rank))

    def to_dict(self) -> dict[str, Any]:
        """Return sum, mean, quantiles and extremes."""
        samples = self.samples
        return {
            "tokens": self.tokens,
            "mean": round(self.tokens / samples, 1) if samples else 0.0,
            "shortest": int(np.argmax(self.counts > 0)) if samples else 0,
            **{name: self.find_quantile(share) for name, share in QUANTILES.items()},
            "longest": self.longest,
        }


@dataclass(slots=True)
class SystemCounts:
    """Counts of the finished samples of one system message, or of all.

    `cut_early` counts answers cut off below max_tokens, that is, by the context length.
    """

    prompts: LengthHistogram = field(default_factory=LengthHistogram)
    answers: LengthHistogram = field(default_factory=LengthHistogram)
    reasons: Counter[str] = field(default_factory=Counter)
    cut_early: int = 0

    @property
    def finished(self) -> int:
        return self.answers.samples

    @property
    def truncated(self) -> int:
        return self.reasons[CUT_OFF]

    @property
    def truncated_share(self) -> float:
        """Share of answers cut off, 0 if there are no samples."""
        return self.truncated / self.finished if self.finished else 0.0

    def merge(self, other: "SystemCounts") -> None:
        self.prompts.merge(other.prompts)
        self.answers.merge(other.answers)
        self.reasons += other.reasons
        self.cut_early += other.cut_early

    def to_dict(self) -> dict[str, Any]:
        return {
            "finished": self.finished,
            "truncated": self.truncated,
            "truncated_share": round(self.truncated_share, 6),
            "cut_by_context": self.cut_early,
            "finish_reasons": dict(sorted(self.reasons.items())),
            "prompt_tokens": self.prompts.to_dict(),
            "completion_tokens": self.answers.to_dict(),
        }


@dataclass(slots=True)
class RunCounts:
    """Counts of a run. `groups` are keyed by the column `system`, `codes`, of what is in failed/, by code.

    `max_tokens` is the limit of an answer, None if rows have their own: it is then unknown which answers
    were cut off by the context.
    """

    max_tokens: int | None
    groups: dict[str, SystemCounts] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)

    def add_finished(self, numbers: PartNumbers) -> None:
        is_cut = np.array([reason == CUT_OFF for reason in numbers.reasons], dtype=bool)
        for system, name in enumerate(numbers.systems):
            chosen = numbers.system == system
            group = self.groups.setdefault(name, SystemCounts())
            group.prompts.add(numbers.prompt_tokens[chosen])
            group.answers.add(numbers.completion_tokens[chosen])
            reasons = np.bincount(numbers.reason[chosen], minlength=len(numbers.reasons))
            group.reasons += Counter(dict(zip(numbers.reasons, reasons.tolist(), strict=True)))
            if self.max_tokens is not None:
                is_short = numbers.completion_tokens[chosen] < self.max_tokens
                group.cut_early += int((is_cut[numbers.reason[chosen]] & is_short).sum())

    def add_failed(self, codes: PartCodes) -> None:
        counts = np.bincount(codes.code, minlength=len(codes.codes))
        self.codes += Counter(dict(zip(codes.codes, counts.tolist(), strict=True)))

    @property
    def total(self) -> SystemCounts:
        total = SystemCounts()
        for group in self.groups.values():
            total.merge(group)
        return total

    @property
    def not_selected(self) -> int:
        """Number of samples that a selection does not keep, which is no failure."""
        return self.codes[NOT_SELECTED]

    @property
    def failed(self) -> int:
        return self.codes.total() - self.not_selected

    @property
    def codes_by_count(self) -> Mapping[str, int]:
        """The codes, most common first; those with equal counts by name."""
        return dict(sorted(self.codes.items(), key=lambda pair: (-pair[1], pair[0])))

    @property
    def failures(self) -> Mapping[str, int]:
        """Failures by code, most common first."""
        return {code: count for code, count in self.codes_by_count.items() if code != NOT_SELECTED}


def find_limit(identity: Mapping[str, Any]) -> int | None:
    """Return max_tokens from a job's identity, None if rows have their own limits."""
    limit: int = identity["sampling"]["max_tokens"]
    return None if "sampling" in identity["input"]["columns"] else limit


def _sum(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
