"""Some rows of a pipeline carried through all of its stages, for `preview --answers` and `plan --probe`.

A stage reads complete runs, and what it keeps may depend on all of them. So these rows are a pipeline of
their own: the same stages on the first rows alone, in the hidden directory of the pipeline itself, under the
lock of both. The same command again takes up what is there; nothing else does.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.errors import NothingSelected
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.job.dotted import merge_values
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.results.read.failures import FailedSample
from synthia_batch.results.read.run import open_run
from synthia_batch.results.read.samples import FinishedSample
from synthia_batch.results.read.stage_runs import StageRun, read_stage_runs
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.pipeline import PipelineResult, lock_root, name_root, run_pipeline
from synthia_batch.runner.pipeline_check import check_pipeline
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.storage.pipeline_file import name_trial

_QUIET = {"report": False, "max_failures": None, "notify": None, "metrics_port": None}
"""What a pipeline of a few rows is not to do: write reports, end early, or tell anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The first rows of a pipeline, of which `directory` has the stages.

    `why` says why not every stage has been reached, None if each is complete. `drained` is the signal that
    ended it, if one did. `exit_code` is that of the run of these rows; 0 if a selection keeps none of them,
    which of a few rows is no fault.
    """

    directory: Path
    stages: Sequence[StageRun]
    why: str | None
    drained: DrainReason | None
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSamples:
    """What a stage made of the rows of a trial: `finished` samples, and those that failed or were dropped."""

    name: str
    run: Path
    finished: Sequence[FinishedSample]
    failed: Sequence[FailedSample]


def try_pipeline(
    pipeline: Pipeline, flags: Sequence[Layer], rows: int, make_display: Callable[[], Display]
) -> Trial:
    """Carry the first `rows` rows of `pipeline` through its stages, with their engines.

    Raises:
        RunLocked: Another process runs the pipeline: two sets of engines would be loaded at a time.
        SynthiaBatchError: As for `run_pipeline`, but for a selection that keeps nothing.
    """
    root = check_pipeline(pipeline, flags)
    first = resolve_job([*flags, pipeline.stages[0].layer])  # Refused before there is a directory.
    root = root or name_root(pipeline, first)
    place = name_trial(root, rows)
    own = Layer(origin="the trial", values={**_QUIET, "output": str(place)})
    few = replace(pipeline, stages=tuple(_limit_rows(stage, rows) for stage in pipeline.stages))
    why: str | None = None
    drained: DrainReason | None = None
    exit_code = 0
    try:
        with lock_root(root):
            done = run_pipeline(few, [own, *flags], make_display)
    except NothingSelected as exc:
        why = str(exc)
    else:
        drained, exit_code = _find_drain(done), done.exit_code
        if not done.is_complete:
            why = f"it ended in {done.stages[-1].name}"
            if exit_code == DrainReason.FAILURES.exit_code:
                why += f", where every sample failed: synthia-batch failed {shlex.quote(str(place))}"
    stages = read_stage_runs(place) or ()
    return Trial(directory=place, stages=stages, why=why, drained=drained, exit_code=exit_code)


def read_samples(trial: Trial) -> list[StageSamples]:
    """Return the samples of each stage that was reached. Holds all of them in memory."""
    found = []
    for stage in trial.stages:
        if stage.run is not None and stage.is_current:
            run = open_run(stage.run)
            finished, failed = tuple(run.samples(with_logprobs=False)), tuple(run.failed())
            found.append(StageSamples(name=stage.name, run=stage.run, finished=finished, failed=failed))
    return found


def _limit_rows(stage: Stage, rows: int) -> Stage:
    """Return the stage with `rows` rows at most, if it reads no other."""
    if stage.reads is not None:
        return stage
    declared = stage.declare().input.limit
    limit = rows if declared is None else min(declared, rows)
    layer = replace(stage.layer, values=merge_values(stage.layer.values, {"input": {"limit": limit}}))
    return replace(stage, layer=layer)


def _find_drain(done: PipelineResult) -> DrainReason | None:
    last = done.stages[-1].result
    return done.stopped or (last.drained if isinstance(last, RunResult) else None)
