"""The flags of a shard's samples: what their answers show, as a column, or as a reason to set them aside.

Pure: the same samples get the same flags, whoever made them and in whatever order. So a flag may look at the
sample itself and at the others of its shard, which the plan fixes, and at nothing else: samples of other
shards are published before or after, as it happens, and a retry publishes a shard again by itself.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthia_batch.core.types import Failed, Finished, Outcome, Sample
from synthia_batch.errors import UsageError
from synthia_batch.job.schema import FlagName, Job
from synthia_batch.results.quality.language import check_library, detect_language
from synthia_batch.results.quality.measures import assess_answer, digest_answer

CODE_PREFIX = "flagged_"
"""Of the codes of samples that were set aside: flagged_repetition, ..."""
ORDER: tuple[FlagName, ...] = ("empty", "repetition", "refusal", "language", "duplicate")
"""In the column, and which of several gives the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagging:
    """Which flags a job asks for. `drops`: what has one is set aside."""

    names: frozenset[FlagName]
    drops: bool

    def settle(self, samples: Sequence[Sample], outcomes: Mapping[int, Outcome]) -> dict[int, Outcome]:
        """Return the outcomes of a shard's `samples`, in order, with their flags, or without those that have.

        A duplicate is the later of two: with the first set aside for another reason, it has that as well.
        """
        seen: set[int] = set()
        settled: dict[int, Outcome] = {}
        for sample in samples:
            outcome = outcomes[sample.ordinal]
            if isinstance(outcome, Finished):
                flags = self._judge(_find_question(sample), outcome.response, seen)
                outcome = _set_aside(outcome, flags) if flags and self.drops else _mark(outcome, flags)
            settled[sample.ordinal] = outcome
        return settled

    def _judge(self, question: str, answer: str, seen: set[int]) -> tuple[FlagName, ...]:
        found = _Findings()
        if self.names & {"empty", "repetition", "refusal"}:
            quality = assess_answer(answer)
            found.note("empty", quality.is_empty)
            found.note("repetition", quality.is_repetitive)
            found.note("refusal", quality.is_refusal)
        if "language" in self.names:
            found.note("language", is_in_another_language(question, answer))
        if "duplicate" in self.names and answer.strip():
            digest = digest_answer(answer)
            found.note("duplicate", digest in seen)
            seen.add(digest)
        return tuple(name for name in ORDER if name in self.names and name in found.names)


def open_flagging(job: Job) -> Flagging | None:
    """Return what flags the samples of `job`, None where it asks for no flags."""
    return Flagging(names=frozenset(job.flags), drops=job.drop_flagged) if job.flags else None


def identify_flags(job: Job) -> dict[str, Any]:
    """Return what of the flags belongs to the identity of `job`; nothing where it asks for none.

    Raises:
        UsageError: What tells languages is not installed, or flagged samples are to go and none are flagged.
    """
    if not job.flags:
        if job.drop_flagged:
            raise UsageError(
                "--drop-flagged: nothing says which flags; name them with --flag repetition,empty"
            )
        return {}
    library = {"language": check_library()} if "language" in job.flags else {}
    names = [name for name in ORDER if name in job.flags]
    return {"names": names, "drop": job.drop_flagged, **library}


def is_in_another_language(question: str, answer: str) -> bool:
    """Whether the answer is in another language than the question, where both are sure."""
    spoken = detect_language(answer)
    return spoken is not None and detect_language(question) not in (None, spoken)


@dataclass(slots=True)
class _Findings:
    names: set[FlagName] = field(default_factory=set)

    def note(self, name: FlagName, is_so: bool) -> None:
        if is_so:
            self.names.add(name)


def _find_question(sample: Sample) -> str:
    return sample.row.follow_ups[-1] if sample.row.follow_ups else sample.messages[-1].content


def _mark(finished: Finished, flags: Sequence[str]) -> Finished:
    return dataclasses.replace(finished, flags=tuple(flags))


def _set_aside(finished: Finished, flags: Sequence[str]) -> Failed:
    return Failed(
        ordinal=finished.ordinal,
        code=f"{CODE_PREFIX}{flags[0]}",
        message=f"set aside by --drop-flagged: {', '.join(flags)}",
        earlier=finished.earlier,
    )
