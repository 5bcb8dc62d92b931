"""Some samples of a run made before the others, for `preview --answers` and `plan --probe`.

They are made as `run` makes them: in its directory, under its lock, by its flow. So they count as done
when the run starts, and of what is done before nothing is made.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Outcome, Sample
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.session import LockedRun, begin_attempt, refuse_other_identity
from synthia_batch.runner.run import make_missing, note_command, prepare_run, report_on
from synthia_batch.runner.subset import SampleSubset
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.recovery import ShardState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSample:
    """A sample that was picked. `outcome` is None where the run drained before it ended."""

    sample: Sample
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRun:
    """What came of it: the picked `samples`, in order. `made` counts those that were made for it.

    `total` and `ended` are of the whole run. `drained` says why not all that were picked have ended.
    `locked` is the run as it was before.
    """

    directory: Path
    samples: Sequence[PartialSample]
    made: int
    total: int
    ended: int
    is_complete: bool
    drained: DrainReason | None
    locked: LockedRun


def run_partial(job: ResolvedJob, pick: Callable[[LockedRun], SampleSubset], display: Display) -> PartialRun:
    """Have the samples that `pick` gives made, those of them that are not, and return them.

    Where all are, no engine starts and nothing is written. Where with them the last sample of the job
    is made, or was before a crash, the run is completed.

    Raises:
        IdentityMismatch: The directory belongs to another job.
        RunLocked: A run, or another of these, goes on there.
        SynthiaBatchError: As for run_job. What was finished is kept.
    """
    started = time.monotonic()
    refuse_other_identity(job, RunDir(job.output))
    with prepare_run(job, display, started) as context:
        locked = context.locked
        subset = pick(locked)
        known = _read_outcomes(locked, locked.states, subset)
        total, ended = locked.shards[-1].stop, sum(state.finished + state.failed for state in locked.states)
        made, drained = 0, None
        lacks_manifest = ended == total and not locked.run_dir.manifest.exists()
        if len(known) < len(subset.ordinals) or lacks_manifest:
            _tell(display, locked, len(subset.ordinals), len(known))
            with begin_attempt(job, locked) as run:
                note_command(run)
                result = make_missing(job, run, display, context, subset)
                made, drained, ended = result.made, result.drained, result.finished + result.failed
                # From the disk, as whoever comes next will find them.
                known = _read_outcomes(locked, run.store.states, subset)
        partial = PartialRun(
            directory=job.output,
            samples=_list_samples(locked, subset, known),
            made=made,
            total=total,
            ended=ended,
            is_complete=locked.run_dir.manifest.exists(),
            drained=drained,
            locked=locked,
        )
    if made:
        report_on(job, display)
    return partial


def _tell(display: Display, locked: LockedRun, wanted: int, known: int) -> None:
    if wanted == known:
        return
    before = f", {known} more are made" if known else ""
    _log.info(
        f"making {wanted - known} samples in {locked.run_dir.root}{before}; they count as done in the run"
    )


def _read_outcomes(
    locked: LockedRun, states: Sequence[ShardState], subset: SampleSubset
) -> dict[int, Outcome]:
    """Return what the picked samples that have ended came to, by ordinal, read a shard at a time."""
    found: dict[int, Outcome] = {}
    for state in states:
        wanted = subset.within(state.shard)
        if wanted:
            outcomes = locked.reopener.read_outcomes(state)
            found |= {ordinal: outcomes[ordinal] for ordinal in wanted if ordinal in outcomes}
    return found


def _list_samples(
    locked: LockedRun, subset: SampleSubset, known: Mapping[int, Outcome]
) -> list[PartialSample]:
    return [
        PartialSample(sample=sample, outcome=known.get(sample.ordinal))
        for shard in locked.shards
        if (wanted := subset.within(shard))
        for sample in locked.assembler.list_samples(shard, wanted)
    ]
