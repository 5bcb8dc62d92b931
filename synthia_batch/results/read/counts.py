"""What a run's samples come to in numbers: lengths, reasons to end, failures. Memory is that of one shard.

Lengths are counted by their exact number of tokens, so every quantile is exact however many there are.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.storage.parts.columns import PartCodes, PartNumbers

QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95}


@dataclass(slots=True)
class Lengths:
    """How many samples have how many tokens: `counts[n]` have n."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, tokens: NDArray[np.int64]) -> None:
        """Take these in."""
        self.counts = _sum(self.counts, np.bincount(tokens).astype(np.int64))

    def merge(self, other: "Lengths") -> None:
        """Take in all of `other`."""
        self.counts = _sum(self.counts, other.counts)

    @property
    def samples(self) -> int:
        """How many were taken in."""
        return int(self.counts.sum())

    @property
    def tokens(self) -> int:
        """All their tokens."""
        return int((self.counts * np.arange(len(self.counts))).sum())

    @property
    def longest(self) -> int:
        """The most tokens of one, 0 where there is none."""
        return max(0, len(np.trim_zeros(self.counts, "b")) - 1)

    def find_quantile(self, share: float) -> int:
        """Return the least length that `share` of the samples do not exceed, 0 where there are none."""
        if not self.samples:
            return 0
        rank = max(1, int(np.ceil(share * self.samples)))
        return int(np.searchsorted(np.cumsum(self.counts), rank))

    def to_dict(self) -> dict[str, Any]:
        """Return the sum, the mean, the quantiles and the extremes."""
        samples = self.samples
        return {
            "tokens": self.tokens,
            "mean": round(self.tokens / samples, 1) if samples else 0.0,
            "shortest": int(np.argmax(self.counts > 0)) if samples else 0,
            **{name: self.find_quantile(share) for name, share in QUANTILES.items()},
            "longest": self.longest,
        }


@dataclass(slots=True)
class Group:
    """The finished samples of one system message, or of all.

    `cut_early` are those cut off before they had all tokens that an answer may have: by the context.
    """

    prompts: Lengths = field(default_factory=Lengths)
    answers: Lengths = field(default_factory=Lengths)
    reasons: Counter[str] = field(default_factory=Counter)
    cut_early: int = 0

    @property
    def finished(self) -> int:
        """How many there are."""
        return self.answers.samples

    @property
    def truncated(self) -> int:
        """How many were cut off."""
        return self.reasons[CUT_OFF]

    @property
    def truncated_share(self) -> float:
        """Their share, 0 where there are no samples."""
        return self.truncated / self.finished if self.finished else 0.0

    def merge(self, other: "Group") -> None:
        """Take in all of `other`."""
        self.prompts.merge(other.prompts)
        self.answers.merge(other.answers)
        self.reasons += other.reasons
        self.cut_early += other.cut_early

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
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
class Tally:
    """A run in numbers. `groups` are by the name in the column `system`, `failures` by code.

    `max_tokens` is what an answer may have, None where rows have limits of their own: which of the cut off
    the context cut is then not known.
    """

    max_tokens: int | None
    groups: dict[str, Group] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    def add_made(self, numbers: PartNumbers) -> None:
        """Take in finished samples."""
        is_cut = np.array([reason == CUT_OFF for reason in numbers.reasons], dtype=bool)
        for place, name in enumerate(numbers.systems):
            chosen = numbers.system == place
            group = self.groups.setdefault(name, Group())
            group.prompts.add(numbers.prompt_tokens[chosen])
            group.answers.add(numbers.completion_tokens[chosen])
            reasons = np.bincount(numbers.reason[chosen], minlength=len(numbers.reasons))
            group.reasons += Counter(dict(zip(numbers.reasons, reasons.tolist(), strict=True)))
            if self.max_tokens is not None:
                is_short = numbers.completion_tokens[chosen] < self.max_tokens
                group.cut_early += int((is_cut[numbers.reason[chosen]] & is_short).sum())

    def add_failed(self, codes: PartCodes) -> None:
        """Take in samples that could not be made."""
        counts = np.bincount(codes.code, minlength=len(codes.codes))
        self.failures += Counter(dict(zip(codes.codes, counts.tolist(), strict=True)))

    @property
    def whole(self) -> Group:
        """All finished samples together."""
        whole = Group()
        for group in self.groups.values():
            whole.merge(group)
        return whole

    @property
    def failed(self) -> int:
        """How many could not be made."""
        return self.failures.total()

    @property
    def failures_by_number(self) -> Mapping[str, int]:
        """The codes, the commonest first, and those of one number by name."""
        return dict(sorted(self.failures.items(), key=lambda pair: (-pair[1], pair[0])))


def find_limit(identity: Mapping[str, Any]) -> int | None:
    """Return the most tokens that an answer may have by a job's identity, None where rows say their own."""
    limit: int = identity["sampling"]["max_tokens"]
    return None if "sampling" in identity["input"]["columns"] else limit


def _sum(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
