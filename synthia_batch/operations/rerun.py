"""Regenerate finished samples in different batches, and check that they come out the same.

They are drawn from across the dataset and regenerated in shuffled order with the run's own job, except
for its batch size. The run directory stays unchanged; its lock is held meanwhile.
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
from synthia_batch.core.errors import UsageError
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.types import Failed, Finished, Outcome, Record, Request, Sample, Turn
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.schema import Determinism
from synthia_batch.operations.tune_search import usual_batch
from synthia_batch.runner.ad_hoc import AdHocRun, run_requests
from synthia_batch.runner.directory.canary_record import compare_canary, list_canaries
from synthia_batch.runner.directory.session import RunSession, lock_run
from synthia_batch.runner.resume import resolve_kept_job
from synthia_batch.scheduler.multi_turn import MultiTurnSession, open_multi_turn
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan

_log = logging.getLogger(__name__)

CONTEXT_CHARACTERS = 40
"""Characters to show on either side of the first difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunSelection:
    """The finished samples to regenerate: `count` of them, drawn with `seed`."""

    count: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDifference:
    """A sample whose regenerated outcome differs from the one `before`."""

    sample: Sample
    before: Finished
    now: Outcome

    def __str__(self) -> str:
        sample = self.sample
        place = f"row {sample.row.index} ({sample.row.id}), system {sample.system!r}, sample {sample.index}"
        return f"sample {sample.ordinal}, {place}: {_describe_difference(self.before, self.now)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "ordinal": self.sample.ordinal,
            "id": self.sample.row.id,
            "row_index": self.sample.row.index,
            "system": self.sample.system,
            "sample_index": self.sample.index,
            "difference": _describe_difference(self.before, self.now),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunResult:
    """The result of a re-run. `compared` of the `chosen` samples were regenerated, at most `batch` at a time.

    `stopped` says why not all of them. `differences` are in the order of the dataset.
    """

    directory: str
    determinism: Determinism
    finished: int
    chosen: int
    compared: int
    batch: int
    differences: tuple[SampleDifference, ...]
    stopped: DrainReason | None


def rerun_samples(
    directory: Path,
    selection: RerunSelection,
    layers: Sequence[Layer],
    display: Display,
    *,
    trusts: bool = False,
) -> RerunResult:
    """Regenerate finished samples of the run in `directory`, and compare them with the stored ones.

    Compares text, reasoning, finish reason and token counts; token ids are not stored. An unfinished
    run can be checked too.

    Raises:
        UsageError: `directory` is not a run, has no saved job, or has no finished sample.
    """
    if require_plan(RunDir(directory))["identity"]["engine"]["kind"] == "openai":
        raise UsageError(f"{directory} was made by an external server, which does not promise equal texts")
    job = resolve_kept_job(directory, "verify --rerun", layers, trusts=trusts)
    drain = DrainRequest()
    with drain.listen(), lock_run(job) as session:
        session.inspect(on_check=display.show_check)
        known = _read_selected(session, selection)
        batch = choose_batch(usual_batch(job.engine), len(known))
        _log.info(f"{len(known)} finished samples are regenerated, at most {batch} at a time")
        collector = _Collector(conversations=open_multi_turn(job))
        ad_hoc = AdHocRun(
            job=job,
            sink=collector,
            advance=collector.conversations.advance,
            drain=drain,
            settings={"max_num_seqs": batch},
            canaries=list_canaries(job),
            # Only compared: a missing answer must not be added to the run.
            check_canary=lambda ready: compare_canary(session.run_dir, ready),
        )
        stopped = run_requests(ad_hoc, collector.request(known, selection))
    return RerunResult(
        directory=str(directory),
        determinism=job.engine.determinism,
        finished=sum(state.finished for state in session.states),
        chosen=len(known),
        compared=len(collector.outcomes),
        batch=batch,
        differences=tuple(_compare(known, collector.outcomes)),
        stopped=stopped,
    )


def choose_batch(usual: int, count: int) -> int:
    """Return a batch size for `count` samples that differs from the run's, which was `usual`."""
    together = min(usual, count)
    return together // 2 if together > 1 else 2


@dataclass(frozen=True, slots=True)
class _Known:
    sample: Sample
    finished: Finished


@dataclass(slots=True, kw_only=True)
class _Collector:
    """A sink that keeps the outcomes in memory."""

    conversations: MultiTurnSession
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def request(self, known: Mapping[int, _Known], selection: RerunSelection) -> list[Request]:
        """Return the first request of each sample, in shuffled order."""
        requests = [self.conversations.begin(one.sample) for one in known.values()]
        random.Random(selection.seed).shuffle(requests)
        return requests

    def record(self, records: Sequence[Record]) -> None:
        self.outcomes |= {record.ordinal: record for record in records if not isinstance(record, Turn)}

    def tick(self) -> None:
        """Do nothing: no write is pending."""


def _read_selected(session: RunSession, selection: RerunSelection) -> dict[int, _Known]:
    """Return the drawn samples by ordinal, in order. Holds the outcomes of one shard at a time."""
    counts = [state.finished for state in session.states]
    total = sum(counts)
    if not total:
        raise UsageError(f"{session.run_dir.root}: no sample is finished yet, so there is nothing to compare")
    drawn = sorted(random.Random(selection.seed).sample(range(total), min(selection.count, total)))
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


def _compare(known: Mapping[int, _Known], outcomes: Mapping[int, Outcome]) -> Iterator[SampleDifference]:
    for ordinal, one in known.items():
        now = outcomes.get(ordinal)
        if now is not None and now != one.finished:
            yield SampleDifference(sample=one.sample, before=one.finished, now=now)


def _describe_difference(before: Finished, now: Outcome) -> str:
    if isinstance(now, Failed):
        return f"it now fails: {now.code}: {now.message}"
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
        return "the same text with different log-probabilities"
    return f"the same text with a different {', '.join(pairs)}"


def _show_first_difference(old: str, new: str) -> str:
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, at - CONTEXT_CHARACTERS)
    cut = "..." if start else ""
    shown = [f"{cut}{text[start : at + CONTEXT_CHARACTERS]!r}" for text in (old, new)]
    return f"from character {at} on\n    before: {shown[0]}\n    now:    {shown[1]}"
