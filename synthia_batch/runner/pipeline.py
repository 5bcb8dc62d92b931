"""run_pipeline(): several stages, one after the other, each a run with all its guarantees.

A stage's rows are the finished samples of a complete run, whose digest is in the stage's identity. So the
guarantees hold by induction: the same command goes on with the stage that is not complete.

    outputs/judged-9c8b7a6d/            named after the first stage's identity
      pipeline.json                     which stages there are, and what each reads
      report.html                       what became of the samples, stage by stage
      stages/answer-9c8b7a6d/           the stages' run directories, each named after its own identity
      stages/keep-1a2b3c4d/
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from synthia_batch.core.console import Display
from synthia_batch.core.digest import digest_json
from synthia_batch.core.errors import NothingSelected, UsageError
from synthia_batch.core.log import show_log
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.job.accept_function import AcceptFunction
from synthia_batch.job.keys import anchor_paths
from synthia_batch.job.loading.errors import naming_fields
from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.merge import read_ray_address
from synthia_batch.job.loading.pipeline_file import STAGES, Pipeline, Stage, read_pipeline
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.read.stage_runs import read_stage_runs
from synthia_batch.results.report.page import try_report
from synthia_batch.results.select.names import name_samples
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.runner.engines import KeptEngines
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.pipeline_check import (
    OF_EACH_STAGE,
    check_pipeline,
    choose_stages,
    complete_steps,
    refuse_incomplete,
    refuse_stage,
)
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.run import run_resolved_job
from synthia_batch.runner.selection import SelectResult, select_samples
from synthia_batch.runner.take_over import find_earlier
from synthia_batch.storage.atomic import make_directory
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.pipeline_file import StageList, StageRecord
from synthia_batch.storage.plan_file import require_plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What became of a stage: a run, or a selection."""

    name: str
    result: RunResult | SelectResult

    @property
    def exit_code(self) -> int:
        """That of the run, 0 for a selection."""
        return self.result.exit_code if isinstance(self.result, RunResult) else 0

    @property
    def kept(self) -> int:
        """The number of its samples that are the next stage's rows."""
        return self.result.finished if isinstance(self.result, RunResult) else self.result.kept


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """The stages that were played. `until` is the last that was to be. `is_complete`: all in the file are.

    `stopped`: a signal came when no stage could be drained.
    """

    directory: Path
    stages: tuple[StageResult, ...]
    until: str
    is_complete: bool
    stopped: DrainReason | None = None

    @property
    def exit_code(self) -> int:
        """0 if every stage is complete."""
        return self.stopped.exit_code if self.stopped else self.stages[-1].exit_code

    @property
    def is_done(self) -> bool:
        """Whether every stage that was to be played is complete."""
        return self.stages[-1].name == self.until and self.exit_code == 0


def _spell(value: Any) -> Any:
    """Return the value as a job file would have it: paths as texts, tuples as lists, functions as source."""
    if isinstance(value, Mapping):
        return {key: _spell(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(inner) for inner in value]
    if callable(value):
        return AcceptFunction(value)
    return str(value) if isinstance(value, Path) else value


def run_stages(
    declared: Path | str | Mapping[str, Any],
    *,
    until: str | None = None,
    only: str | None = None,
    progress: bool = False,
    force: bool = False,
) -> PipelineResult:
    """Run the pipeline in the job file `declared`, or with its keys; the same again resumes it.

    `until` and `only` name a stage, as for the command. Logging, signals and `force` are as of `run_job`.

    Raises:
        SynthiaBatchError: See `errors`; each message says what to do next. Finished samples are kept.
    """
    with show_log(Display(quiet=not progress).stream, quiet=not progress), naming_fields():
        path = Path("pipeline") if isinstance(declared, Mapping) else Path(declared)
        if isinstance(declared, Mapping):
            layer = Layer(origin="argument", values=_spell(declared))
        else:
            layer = read_job_file(path)
        if not layer.sets(STAGES):
            raise UsageError(f"{path}: there are no stages; a single job is for run_job")
        return run_pipeline(
            read_pipeline(layer, path),
            [read_ray_address(os.environ)],
            lambda: Display(quiet=not progress),
            until=until,
            only=only,
            force=force,
        )


def run_pipeline(
    pipeline: Pipeline,
    flags: Sequence[Layer],
    make_display: Callable[[], Display],
    *,
    until: str | None = None,
    only: str | None = None,
    force: bool = False,
) -> PipelineResult:
    """Run the stages in order, up to the first that does not become complete, or the one named `until`.

    Of the stage named `only`, those before it are checked, and must be complete.

    Raises:
        UsageError: A stage cannot be run, or one before `only` is not complete. Names that its templates
            and expressions misspell, and templates that are not there, are refused before any engine starts.
        SynthiaBatchError: As for `run_job` and `select_samples`.
    """
    root = check_pipeline(pipeline, flags)
    wanted = choose_stages(pipeline, until=until, only=only)
    _log.info(_announce(pipeline, pipeline.stages.index(wanted[0])))
    first = resolve_job([*flags, _add_input(pipeline.stages[0], {})])
    root = root or name_root(pipeline, first)
    if only is not None:
        refuse_incomplete(root, [_record(stage) for stage in wanted[:-1]], only)
    directories, results = dict[str, Path](), list[StageResult]()
    drain = DrainRequest()
    reports = next((layer.values["report"] for layer in flags if "report" in layer.values), pipeline.report)
    with drain.listen(), lock_root(root), KeptEngines() as engines:
        noted = StageList(root, [_record(stage) for stage in pipeline.stages])
        for stage in wanted:
            result: RunResult | SelectResult
            number = pipeline.stages.index(stage)
            if stage is not wanted[0]:
                _log.info(_announce(pipeline, number))
            if stage.select is not None and stage.reads is not None:
                with _adding_stages(stage, lambda: _conclude(root, wanted, results, drain.reason)):
                    source = directories[stage.reads]
                    steps = complete_steps(stage.select, name_samples(read_facts(source)), pipeline)
                    within = RunDir(root).stages
                    result = select_samples(source, steps, within=within, called=stage.name, reports=reports)
            else:
                job = resolve_job([*flags, _add_input(stage, directories)]) if number else first
                place = name_place(root, stage, job)
                if only not in (None, stage.name) and read_manifest(RunDir(place).manifest) is None:
                    raise refuse_stage(str(only), stage.name)
                noted.note_run(number, place.name)  # Before it begins: `status` shows how far it is.
                job = dataclasses.replace(job, output=place)
                before = find_earlier(stage.name, job)
                result = run_resolved_job(job, make_display(), force=force, engines=engines, earlier=before)
            noted.note_run(number, result.directory.name)
            if isinstance(result, SelectResult) or result.is_complete:
                noted.note_made(number)
            directories[stage.name] = result.directory
            results.append(StageResult(name=stage.name, result=result))
            if results[-1].exit_code or drain.reason is not None:
                break
    done = _conclude(root, wanted, results, drain.reason)
    if reports and done.is_complete:
        try_report(root)
    return done


@contextmanager
def _adding_stages(stage: Stage, conclude: Callable[[], PipelineResult]) -> Iterator[None]:
    """Add what was made before to the error that `stage` keeps nothing."""
    try:
        yield
    except NothingSelected as exc:
        exc.stage, exc.made = stage.name, conclude()
        raise


def _conclude(
    root: Path, wanted: Sequence[Stage], results: Sequence[StageResult], drained: DrainReason | None
) -> PipelineResult:
    """Return what became of the `wanted` stages of the pipeline in `root`."""
    is_whole, has_failed = len(results) == len(wanted), results[-1].exit_code != 0
    return PipelineResult(
        directory=root,
        stages=tuple(results),
        until=wanted[-1].name,
        is_complete=is_whole and not has_failed and _is_complete(root),
        stopped=None if is_whole or has_failed else drained,
    )


def _is_complete(root: Path) -> bool:
    """Whether each stage of the pipeline in `root` is complete, and made of what those before it have."""
    return all(
        stage.run is not None and stage.is_current and read_manifest(RunDir(stage.run).manifest) is not None
        for stage in read_stage_runs(root) or ()
    )


def _record(stage: Stage) -> StageRecord:
    said = {key: value for key, value in stage.layer.values.items() if key not in OF_EACH_STAGE - {"engine"}}
    # From wherever the file is named.
    said = anchor_paths(said, Path.cwd())
    declared = digest_json([said, stage.select and stage.select.identify()])[:32]
    return StageRecord(name=stage.name, reads=stage.reads, declared=declared)


def name_root(pipeline: Pipeline, first: ResolvedJob) -> Path:
    """Return the directory of a pipeline that names none, from the job of its first stage."""
    return Path("outputs") / f"{pipeline.name}-{first.fingerprint[:8]}"


def name_place(root: Path, stage: Stage, job: ResolvedJob) -> Path:
    """Return the run directory of a stage of the pipeline in `root`."""
    return RunDir(root).stages / f"{stage.name}-{job.fingerprint[:8]}"


def _announce(pipeline: Pipeline, number: int) -> str:
    return f"stage {number + 1} of {len(pipeline.stages)}, {pipeline.stages[number].name}"


def lock_root(root: Path) -> RunLock:
    """Return the lock of the pipeline in `root`, by which others see that it is going on."""
    make_directory(RunDir(root).hidden)
    return RunLock(RunDir(root), datetime.now().astimezone())


def _add_input(stage: Stage, directories: Mapping[str, Path]) -> Layer:
    """Return the stage's layer with its input: the run that it reads, of which it keeps every column."""
    if stage.reads is None:
        return stage.layer
    source = directories[stage.reads]
    plan = require_plan(RunDir(source))
    kept = [column["name"] for column in plan["scan"]["kept"]]
    return stage.complete({"input": {"path": str(source), "keep_columns": [*kept, plan["name"]]}})
