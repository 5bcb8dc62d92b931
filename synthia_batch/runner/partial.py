"""Some samples of a run generated before the others, for `preview --answers` and `plan --probe`.

They are generated as `run` does it: in the run's directory, under its lock, by the same code. So they count
as done when the run starts, and samples that are done already are not generated here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.formatting import format_count
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Outcome, Sample
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.plan import refuse_other_identity
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.run import open_session, report_if_complete, run_attempt
from synthia_batch.runner.subset import SampleSubset
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.recovery import ShardState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSample:
    """A sample of the subset. `outcome` is None if the run drained before the sample ended."""

    sample: Sample
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRun:
    """The `samples` of the subset, in order. `made` of them were generated now.

    `total` and `ended` count the samples of the whole run. `drained` says why samples of the subset are
    missing. `session` has ended; its plan, shards and assembler can still be read.
    """

    directory: Path
    samples: Sequence[PartialSample]
    made: int
    total: int
    ended: int
    is_complete: bool
    drained: DrainReason | None
    session: RunSession


def run_partial(
    job: ResolvedJob, choose: Callable[[RunSession], SampleSubset], display: Display
) -> PartialRun:
    """Generate the missing samples of the subset that `choose` returns, and return the whole subset.

    If none is missing, no engine starts and nothing is written. If no sample of the job is missing
    afterwards, the run is completed.
    """
    refuse_other_identity(job, RunDir(job.output))
    with open_session(job, display) as session:
        subset = choose(session)
        known = _read_outcomes(session, session.states, subset)
        total, ended = session.shards[-1].stop, sum(state.finished + state.failed for state in session.states)
        drained = None
        manifest = session.run_dir.manifest
        lacks_manifest = ended == total and not manifest.exists()
        if len(known) < len(subset.ordinals) or lacks_manifest:
            _log_start(session, len(subset.ordinals), len(known))
            result = run_attempt(session, display, subset=subset)
            drained, ended = result.drained, result.finished + result.failed
            # From the disk, as the next process will find them.
            known = _read_outcomes(session, session.store.states, subset)
        partial = PartialRun(
            directory=job.output,
            samples=_list_samples(session, subset, known),
            made=session.made,
            total=total,
            ended=ended,
            is_complete=manifest.exists(),
            drained=drained,
            session=session,
        )
    if partial.made:
        report_if_complete(job)
    return partial


def _log_start(session: RunSession, wanted: int, known: int) -> None:
    if wanted == known:
        return
    before = f", {known} more are done" if known else ""
    where = session.run_dir.root
    samples = format_count(wanted - known, "sample")
    _log.info(f"generating {samples} in {where}{before}; they count as done in the run")


def _read_outcomes(
    session: RunSession, states: Sequence[ShardState], subset: SampleSubset
) -> dict[int, Outcome]:
    """Return the outcomes of the subset's samples that have ended, by ordinal, read a shard at a time."""
    found: dict[int, Outcome] = {}
    for state in states:
        wanted = subset.within(state.shard)
        if wanted:
            outcomes = session.reopener.read_outcomes(state)
            found |= {ordinal: outcomes[ordinal] for ordinal in wanted if ordinal in outcomes}
    return found


def _list_samples(
    session: RunSession, subset: SampleSubset, known: Mapping[int, Outcome]
) -> list[PartialSample]:
    return [
        PartialSample(sample=sample, outcome=known.get(sample.ordinal))
        for shard in session.shards
        if (wanted := subset.within(shard))
        for sample in session.assembler.list_samples(shard, wanted)
    ]
