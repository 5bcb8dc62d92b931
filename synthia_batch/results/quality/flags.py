"""Flags of a shard's samples: a column, or a reason to drop samples.

Pure: the same samples get the same flags, in whatever order they were generated. A flag may depend only on
the sample and the others of its shard, which the plan fixes: the publication order of shards varies, and a
retry publishes a single shard again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Failed, Finished, Outcome, Sample
from synthia_batch.job.schema import FlagName, Job
from synthia_batch.results.quality.language import check_library, detect_language
from synthia_batch.results.quality.measures import assess_answer, digest_answer

CODE_PREFIX = "flagged_"
"""Of the failure codes of dropped samples: flagged_repetition, ..."""
ORDER: tuple[FlagName, ...] = ("empty", "repetition", "refusal", "language", "duplicate")
"""Order in the column; the first flag of a dropped sample gives its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagger:
    """Flags samples as a job requests. `drops`: a flagged sample becomes a failed one."""

    names: frozenset[FlagName]
    drops: bool

    def open_shard(self) -> Callable[[Sample, Outcome], Outcome]:
        """Return a function that flags or drops the outcomes of a shard's samples, called for each in order.

        Of two equal answers the later one is the duplicate, even if the first is dropped.
        """
        seen: set[int] = set()

        def apply(sample: Sample, outcome: Outcome) -> Outcome:
            if not isinstance(outcome, Finished):
                return outcome
            flags = self._find_flags(_find_question(sample), outcome.response, seen)
            return _drop(outcome, flags) if flags and self.drops else _mark(outcome, flags)

        return apply

    def _find_flags(self, question: str, answer: str, seen: set[int]) -> tuple[FlagName, ...]:
        found: dict[FlagName, bool] = {}
        if self.names & {"empty", "repetition", "refusal"}:
            quality = assess_answer(answer)
            found["empty"] = quality.is_empty
            found["repetition"] = quality.is_repetitive
            found["refusal"] = quality.is_refusal
        if "language" in self.names:
            found["language"] = is_in_another_language(question, answer)
        if "duplicate" in self.names and answer.strip():
            digest = digest_answer(answer)
            found["duplicate"] = digest in seen
            seen.add(digest)
        return tuple(name for name in ORDER if name in self.names and found.get(name))


def create_flagger(job: Job) -> Flagger | None:
    return Flagger(names=frozenset(job.flags), drops=job.drop_flagged) if job.flags else None


def identify_flags(job: Job) -> dict[str, Any]:
    """Return the identity values of the flags of `job`, empty if it requests none.

    Raises:
        UsageError: py3langid is required and missing, or flagged samples are to be dropped without flags.
    """
    if not job.flags:
        if job.drop_flagged:
            raise UsageError(
                "--drop-flagged: expected at least one flag; add for example --flag repetition,empty"
            )
        return {}
    library = {"language": check_library()} if "language" in job.flags else {}
    names = [name for name in ORDER if name in job.flags]
    return {"names": names, "drop": job.drop_flagged, **library}


def is_in_another_language(question: str, answer: str) -> bool:
    """Whether question and answer are in different languages, both detected with confidence."""
    answered = detect_language(answer)
    return answered is not None and detect_language(question) not in (None, answered)


def _find_question(sample: Sample) -> str:
    if sample.row.follow_ups:
        return sample.row.follow_ups[-1]
    return next(message.content for message in reversed(sample.messages) if message.role != "assistant")


def _mark(finished: Finished, flags: Sequence[str]) -> Finished:
    return dataclasses.replace(finished, flags=tuple(flags))


def _drop(finished: Finished, flags: Sequence[str]) -> Failed:
    return Failed(
        ordinal=finished.ordinal,
        code=f"{CODE_PREFIX}{flags[0]}",
        message=f"set aside by --drop-flagged: {', '.join(flags)}",
        earlier=finished.earlier,
    )
