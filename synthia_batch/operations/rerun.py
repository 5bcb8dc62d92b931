"""rerun_samples(): finished samples made again in other company, to see whether they come out the same.

The run's own job makes them, with its engine's settings but for the size of the batch, in shuffled order
and from all over the dataset. Nothing in the run directory is altered; its lock is held, so that nobody
else does meanwhile.
"""

import itertools
import logging
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthia_batch.core.console import Display
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.types import Failed, Finished, Outcome, Record, Request, Sample, Turn
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.schema import Determinism
from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.operations.tune_search import usual_batch
from synthia_batch.runner.ad_hoc import AdHocRun, run_requests
from synthia_batch.runner.directory.canary_record import compare_canary, make_canaries
from synthia_batch.runner.directory.session import RunSession, lock_run
from synthia_batch.runner.resume import resolve_kept_job
from synthia_batch.scheduler.multi_turn import MultiTurnSession, open_multi_turn

_log = logging.getLogger(__name__)

CONTEXT_CHARACTERS = 40
"""What is shown on either side of the first difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which finished samples to make again: `count` of them, drawn with `seed`."""

    count: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDifference:
    """A sample that came out otherwise than it was `before`."""

    sample: Sample
    before: Finished
    now: Outcome

    def __str__(self) -> str:
        sample = self.sample
        place = f"row {sample.row.index} ({sample.row.id}), system {sample.system!r}, sample {sample.index}"
        return f"sample {sample.ordinal}, {place}: {_describe_difference(self.before, self.now)}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "ordinal": self.sample.ordinal,
            "id": self.sample.row.id,
            "row_index": self.sample.row.index,
            "system": self.sample.system,
            "sample_index": self.sample.index,
            "difference": _describe_difference(self.before, self.now),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What came of it. `compared` samples were made again, in batches of `batch` at most.

    `stopped` says why not all that were chosen. `differences` are in the order of the dataset.
    """

    directory: str
    determinism: Determinism
    finished: int
    chosen: int
    compared: int
    batch: int
    differences: tuple[SampleDifference, ...]
    stopped: DrainReason | None


def rerun_samples(directory: Path, choice: Choice, said: Sequence[Layer], display: Display) -> Rerun:
    """Make finished samples of the run in `directory` again, and compare them with what it has.

    Compared are the text, its reasoning, how it ended, and the numbers of tokens; token ids are not
    kept. Works on an unfinished run, too, with what it has finished.

    Raises:
        UsageError: `directory` is no run, keeps no job, or has no finished sample.
        IdentityMismatch: Input, model, versions or hardware are not what they were.
        RunLocked: A run goes on there.
        IntegrityError: What is there is not what was written.
        DeterminismBroken: The engine does not answer the canaries as the run's did.
        PoolFailed: The engine does not work.
    """
    job = resolve_kept_job(directory, "verify --rerun", said)
    if job.engine.is_elsewhere:
        raise UsageError(
            f"{directory} was made by a server that is not ours: equal texts were never promised"
        )
    drain = DrainRequest()
    with drain.listen(), lock_run(job) as session:
        session.inspect(on_check=display.show_check)
        known = _read_chosen(session, choice)
        batch = choose_batch(usual_batch(job.engine), len(known))
        _log.info(f"{len(known)} finished samples are made again, at most {batch} at a time")
        again = _Again(conversations=open_multi_turn(job))
        ad_hoc = _run_ad_hoc(job, session, again, drain, display, batch)
        stopped = run_requests(ad_hoc, again.request(known, choice))
    return Rerun(
        directory=str(directory),
        determinism=job.engine.determinism,
        finished=sum(state.finished for state in session.states),
        chosen=len(known),
        compared=len(again.outcomes),
        batch=batch,
        differences=tuple(_compare(known, again.outcomes)),
        stopped=stopped,
    )


def choose_batch(usual: int, count: int) -> int:
    """Return how many of `count` samples to make at a time, where the run made `usual`: not as many."""
    together = min(usual, count)
    return together // 2 if together > 1 else 2


@dataclass(frozen=True, slots=True)
class _Known:
    sample: Sample
    finished: Finished


@dataclass(slots=True, kw_only=True)
class _Again:
    """A sink that keeps the outcomes."""

    conversations: MultiTurnSession
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def request(self, known: Mapping[int, _Known], choice: Choice) -> list[Request]:
        """Return what to begin with, in shuffled order."""
        requests = [self.conversations.begin(one.sample) for one in known.values()]
        random.Random(choice.seed).shuffle(requests)
        return requests

    def record(self, records: Sequence[Record]) -> None:
        self.outcomes |= {record.ordinal: record for record in records if not isinstance(record, Turn)}

    def tick(self) -> None:
        """Nothing waits for the disk."""


def _read_chosen(session: RunSession, choice: Choice) -> dict[int, _Known]:
    """Return the samples that `choice` draws, by ordinal, in order; a shard's at a time are in memory."""
    counts = [state.finished for state in session.states]
    total = sum(counts)
    if not total:
        raise UsageError(f"{session.run_dir.root}: no sample is finished, so none can be made again")
    drawn = sorted(random.Random(choice.seed).sample(range(total), min(choice.count, total)))
    ends = list(itertools.accumulate(counts))
    known: dict[int, _Known] = {}
    for number, group in itertools.groupby(drawn, key=lambda place: bisect_right(ends, place)):
        state = session.states[number]
        outcomes = session.reopener.read_outcomes(state).values()
        finished = {made.ordinal: made for made in outcomes if isinstance(made, Finished)}
        in_order = sorted(finished)
        wanted = {in_order[place - ends[number] + counts[number]] for place in group}
        for sample in session.assembler.list_samples(state.shard):
            if sample.ordinal in wanted:
                known[sample.ordinal] = _Known(sample, finished[sample.ordinal])
    return known


def _run_ad_hoc(
    job: ResolvedJob, session: RunSession, again: _Again, drain: DrainRequest, display: Display, batch: int
) -> AdHocRun:
    is_strict = job.engine.determinism == "strict"
    return AdHocRun(
        job=job,
        sink=again,
        advance=again.conversations.advance,
        drain=drain,
        settings={"max_num_seqs": batch},
        canaries=make_canaries(open_renderer(job.prompt), job.engine.max_model_len) if is_strict else None,
        # Compared only: an answer that the run lacks is not for us to give.
        check_canary=lambda ready: compare_canary(session.run_dir, ready),
    )


def _compare(known: Mapping[int, _Known], outcomes: Mapping[int, Outcome]) -> Iterator[SampleDifference]:
    for ordinal, one in known.items():
        now = outcomes.get(ordinal)
        if now is not None and now != one.finished:
            yield SampleDifference(sample=one.sample, before=one.finished, now=now)


def _describe_difference(before: Finished, now: Outcome) -> str:
    if isinstance(now, Failed):
        return f"it cannot be made any more: {now.code}: {now.message}"
    for name in ("response", "reasoning"):
        old, new = getattr(before, name) or "", getattr(now, name) or ""
        if old != new:
            return f"its {name} differs {_show_first_difference(old, new)}"
    pairs = [
        f"{name} {getattr(before, name)} before, {getattr(now, name)} now"
        for name in ("finish_reason", "prompt_tokens", "completion_tokens")
        if getattr(before, name) != getattr(now, name)
    ]
    if not pairs:
        return "the same text with other log-probabilities"
    return f"the same text with another {', '.join(pairs)}"


def _show_first_difference(old: str, new: str) -> str:
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, at - CONTEXT_CHARACTERS)
    cut = "..." if start else ""
    shown = [f"{cut}{text[start : at + CONTEXT_CHARACTERS]!r}" for text in (old, new)]
    return f"from character {at} on\n    before: {shown[0]}\n    now:    {shown[1]}"
