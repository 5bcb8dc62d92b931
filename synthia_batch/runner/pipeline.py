"""run_pipeline(): several stages, one after the other, each a run with all its guarantees.

A stage's rows are the finished samples of a complete run, whose digest is in the stage's identity. So the
guarantees hold by induction: the same command goes on with the stage that is not complete.

    outputs/judged-9c8b7a6d/            named after the first stage's identity
      pipeline.json                     which stages there are, and what each reads
      stages/answer-9c8b7a6d/           the stages' run directories, each named after its own identity
      stages/keep-1a2b3c4d/
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.digest import digest_json
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.errors import UsageError
from synthia_batch.inputs.records.expressions import SampleNames, suggest
from synthia_batch.inputs.records.template import PromptTemplate
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.schema import Job
from synthia_batch.job.select import Select
from synthia_batch.results.select.decide import Selector
from synthia_batch.results.select.names import name_samples
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.runner.engines import KeptEngines
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.run import run_resolved_job
from synthia_batch.runner.selection import SelectResult, select_samples
from synthia_batch.scheduler.acceptance import compile_acceptance
from synthia_batch.storage.atomic import make_directory, temporary_path
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.parts.schema import DATA_COLUMNS
from synthia_batch.storage.pipeline_file import StageList, StageRecord
from synthia_batch.storage.plan_file import require_plan

_log = logging.getLogger(__name__)

OF_EACH_STAGE = frozenset(
    {"engine", "pool", "output", "report", "stop_at", "max_failures", "notify", "metrics_port"}
)
"""The keys that flags and the environment may set for all stages of a pipeline."""


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
    """The stages that were played, of `total`. `stopped`: a signal came when no stage could be drained."""

    directory: Path
    stages: tuple[StageResult, ...]
    total: int
    stopped: DrainReason | None = None

    @property
    def exit_code(self) -> int:
        """0 if every stage is complete."""
        return self.stopped.exit_code if self.stopped else self.stages[-1].exit_code

    @property
    def is_complete(self) -> bool:
        """Whether the last stage is."""
        return len(self.stages) == self.total and self.exit_code == 0


def run_pipeline(
    pipeline: Pipeline, flags: Sequence[Layer], make_display: Callable[[], Display], *, force: bool = False
) -> PipelineResult:
    """Run the stages in order, up to the first that does not become complete.

    Raises:
        UsageError: A stage cannot be run. Names that its templates and expressions misspell, and templates
            that are not there, are refused before any engine starts.
        SynthiaBatchError: As for `run_job` and `select_samples`.
    """
    root = check_pipeline(pipeline, flags)
    _log.info(_announce(pipeline, 0))
    first = resolve_job([*flags, _add_input(pipeline.stages[0], {})])
    root = root or name_root(pipeline, first)
    directories: dict[str, Path] = {}
    results: list[StageResult] = []
    drain = DrainRequest()
    reports = next((layer.values["report"] for layer in flags if "report" in layer.values), pipeline.report)
    with drain.listen(), _lock(root), KeptEngines() as engines:
        noted = StageList(root, [_record(stage) for stage in pipeline.stages])
        for number, stage in enumerate(pipeline.stages):
            result: RunResult | SelectResult
            if number:
                _log.info(_announce(pipeline, number))
            if stage.select is not None and stage.reads is not None:
                source = directories[stage.reads]
                steps = _complete_steps(stage.select, name_samples(read_facts(source)), pipeline)
                within = RunDir(root).stages
                result = select_samples(source, steps, within=within, called=stage.name, reports=reports)
            else:
                job = resolve_job([*flags, _add_input(stage, directories)]) if number else first
                place = name_place(root, stage, job)
                noted.note_run(number, place.name)  # Before it begins: `status` shows how far it is.
                job = dataclasses.replace(job, output=place)
                result = run_resolved_job(job, make_display(), force=force, engines=engines)
            noted.note_run(number, result.directory.name)
            directories[stage.name] = result.directory
            results.append(StageResult(name=stage.name, result=result))
            if results[-1].exit_code or drain.reason is not None:
                break
    is_stopped = drain.reason is not None and len(results) < len(pipeline.stages)
    return PipelineResult(
        directory=root,
        stages=tuple(results),
        total=len(pipeline.stages),
        stopped=drain.reason if is_stopped and not results[-1].exit_code else None,
    )


def check_pipeline(pipeline: Pipeline, flags: Sequence[Layer]) -> Path | None:
    """Check what can be known before a stage is run; return the directory that is named for the pipeline.

    Raises:
        UsageError: As for `run_pipeline`.
    """
    _check_flags(flags)
    root = _find_output(pipeline, flags)
    _check_names(pipeline, flags)
    return root


def _record(stage: Stage) -> StageRecord:
    declared = digest_json([stage.layer.values, stage.select and stage.select.identify()])[:32]
    return StageRecord(name=stage.name, reads=stage.reads, declared=declared)


def name_root(pipeline: Pipeline, first: ResolvedJob) -> Path:
    """Return the directory of a pipeline that names none, from the job of its first stage."""
    return Path("outputs") / f"{pipeline.name}-{first.fingerprint[:8]}"


def name_place(root: Path, stage: Stage, job: ResolvedJob) -> Path:
    """Return the run directory of a stage of the pipeline in `root`."""
    return RunDir(root).stages / f"{stage.name}-{job.fingerprint[:8]}"


def _announce(pipeline: Pipeline, number: int) -> str:
    return f"stage {number + 1} of {len(pipeline.stages)}, {pipeline.stages[number].name}"


def _lock(root: Path) -> RunLock:
    """Return the lock of the pipeline in `root`, by which others see that it is going on."""
    make_directory(RunDir(root).hidden)
    return RunLock(RunDir(root), datetime.now().astimezone())


def _check_flags(flags: Sequence[Layer]) -> None:
    for layer in flags:
        for key in layer.values:
            if key not in OF_EACH_STAGE:
                origins = [place.origin for at, place in layer.places.items() if at.split(".")[0] == key]
                raise UsageError(
                    f"{(origins or [layer.origin])[0]}: {key}: each stage of a pipeline says its own; set it "
                    f"in the file. All stages can be given {', '.join(sorted(OF_EACH_STAGE))}"
                )


def _find_output(pipeline: Pipeline, flags: Sequence[Layer]) -> Path | None:
    """Return the directory that is named for the pipeline, if it can be one."""
    output = next((layer.values["output"] for layer in flags if "output" in layer.values), pipeline.output)
    if output is None:
        return None
    if "://" in str(output):
        raise UsageError(f"-o {output}: a pipeline's output is a directory on this machine")
    root = Path(output).expanduser()
    if root.exists() and not root.is_dir():
        raise UsageError(f"-o {root}: expected a directory, got a file; name a directory")
    run_dir = RunDir(root)
    begun = {run_dir.hidden, temporary_path(run_dir.pipeline)}  # What a pipeline has before it has its file.
    if root.is_dir() and not run_dir.pipeline.exists() and set(root.iterdir()) - begun:
        raise UsageError(f"-o {root}: expected a pipeline's or an empty directory, got other files")
    return root


def _check_names(pipeline: Pipeline, flags: Sequence[Layer]) -> None:
    """Refuse expressions and templates that name what no stage before theirs has."""
    known: dict[str, SampleNames | None] = {}
    for stage in pipeline.stages:
        before = known[stage.reads] if stage.reads is not None else None
        if stage.select is not None:
            if before is not None:
                try:
                    Selector(_complete_steps(stage.select, before, pipeline), before)
                except UsageError as exc:
                    raise stage.refuse(f"select.{str(exc).partition(':')[0]}", exc) from exc
            known[stage.name] = before
            continue
        job: Job = stage.declare(flags)
        if stage.reads is not None:
            _check_prompt(stage, job, before)
        known[stage.name] = made = _name_made(stage, job, before)
        if made is not None:
            try:
                runs = {name: columns for name, columns in made.runs.items() if name != stage.name}
                compile_acceptance(job, [*made.plain, *runs], runs)
            except UsageError as exc:
                raise stage.refuse("accept", exc) from exc


def _name_made(stage: Stage, job: Job, before: SampleNames | None) -> SampleNames | None:
    """Return the names of what a stage makes; None if it keeps columns of a run that is not a stage."""
    if before is None and (stage.reads is not None or any(Path(path).is_dir() for path in job.input.paths)):
        return None
    kept, runs = (
        [*job.input.keep_columns, *job.input.columns],
        dict(before.runs) if before is not None else {},
    )
    if before is not None and "keep_columns" not in stage.layer.values["input"]:
        kept = [*before.plain, *before.runs]
    for name in kept:
        if before is not None and name not in before.top:
            raise stage.refuse("input.keep_columns", f"there is no {name}{suggest(name, before.top)}")
    renamed = {name: job.input.rename_columns.get(name, name) for name in kept}
    if stage.name in renamed.values():
        raise stage.refuse("name", f"a kept column is named {stage.name}, too; name the stage otherwise")
    # Some columns depend on the rows: that they are there is checked when the stage is.
    columns = [column.name for column in DATA_COLUMNS]
    return SampleNames(
        job=stage.name,
        runs={**{renamed[name]: runs[name] for name in kept if name in runs}, stage.name: columns},
        plain=[renamed[name] for name in kept if name not in runs],
    )


def _check_prompt(stage: Stage, job: Job, before: SampleNames | None) -> None:
    """Refuse a stage that does not say what is asked of samples, or by names that they do not have."""
    columns = job.input
    key = "messages_template" if columns.messages_template is not None else "prompt_template"
    path = getattr(columns, key)
    named = (columns.prompt_column, columns.messages_column, columns.turns_column)
    if path is None:
        if columns.generate_role == "assistant" and all(name is None for name in named):
            raise stage.refuse(
                "input", "say what is asked of the samples: `input: {prompt_template: FILE}`, or a column"
            )
        return
    try:
        template = PromptTemplate(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise stage.refuse(f"input.{key}", f"{path}: cannot be read: {why}") from exc
    except UsageError as exc:
        raise stage.refuse(f"input.{key}", exc) from exc
    if before is None:
        return
    known = before.top
    for column, field in template.fields:
        if column in before.runs and field not in before.runs[column]:
            what = f"{path.name}: {column} has no {field}{suggest(field, before.runs[column])}"
            raise stage.refuse(f"input.{key}", what)
    for name in template.columns:
        if name not in known:
            what = f"{path.name}: there is no {name}{suggest(name, known)}"
            raise stage.refuse(f"input.{key}", what)


def _add_input(stage: Stage, directories: Mapping[str, Path]) -> Layer:
    """Return the stage's layer with its input: the run that it reads, of which it keeps every column."""
    if stage.reads is None:
        return stage.layer
    source = directories[stage.reads]
    plan = require_plan(RunDir(source))
    kept = [column["name"] for column in plan["scan"]["kept"]]
    return stage.complete({"input": {"path": str(source), "keep_columns": [*kept, plan["name"]]}})


def _complete_steps(select: Select, names: SampleNames, pipeline: Pipeline) -> Select:
    """Return the steps with what `best` compares by default: the samples of a row of the pipeline's input."""
    first = pipeline.stages[0].name
    if select.best is None or select.per is not None or first not in names.runs:
        return select
    return select.model_copy(update={"per": first})
