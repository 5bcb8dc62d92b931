"""What can be known of a pipeline before a stage is run: its directory, its flags, and the names in it."""

from collections.abc import Sequence
from pathlib import Path

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs.records.expressions import SampleNames, suggest
from synthia_batch.inputs.records.template import PromptTemplate
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.job.schema import Job
from synthia_batch.job.select import Select
from synthia_batch.results.read.stage_runs import read_stage_runs
from synthia_batch.results.select.decide import Selector
from synthia_batch.scheduler.acceptance import compile_acceptance
from synthia_batch.storage.atomic import temporary_path
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.parts.schema import DATA_COLUMNS
from synthia_batch.storage.pipeline_file import StageRecord

OF_EACH_STAGE = frozenset(
    {"engine", "pool", "output", "report", "stop_at", "max_failures", "notify", "metrics_port"}
)
"""The keys that flags and the environment may set for all stages of a pipeline."""


def check_pipeline(pipeline: Pipeline, flags: Sequence[Layer]) -> Path | None:
    """Check what can be known before a stage is run; return the directory that is named for the pipeline.

    Raises:
        UsageError: As for `run_pipeline`.
    """
    _check_flags(flags)
    root = _find_output(pipeline, flags)
    _check_names(pipeline, flags)
    return root


def choose_stages(pipeline: Pipeline, *, until: str | None, only: str | None) -> tuple[Stage, ...]:
    """Return the stages to be played: all, those up to `until`, or `only` one behind those that it needs.

    Raises:
        UsageError: There is no stage of the name, or both are named.
    """
    if until is not None and only is not None:
        raise UsageError("--until and --only: name a stage with one of them")
    flag, named = ("--until", until) if only is None else ("--only", only)
    if named is None:
        return pipeline.stages
    stages = {stage.name: stage for stage in pipeline.stages}
    if named not in stages:
        raise UsageError(f"{flag} {named}: there is no such stage{suggest(named, [*stages])}")
    if only is None:
        return pipeline.stages[: [*stages].index(named) + 1]
    chosen = [stages[named]]
    while (reads := chosen[0].reads) is not None:
        chosen.insert(0, stages[reads])
    return tuple(chosen)


def refuse_incomplete(root: Path, needed: Sequence[StageRecord], only: str) -> None:
    """Return if the `needed` stages of the pipeline in `root`, which are before `only`, are complete.

    Raises:
        UsageError: One of them is not, or is not what the pipeline's file says now.
    """
    known = {stage.name: stage for stage in read_stage_runs(root) or []}
    for record in needed:
        stage = known.get(record.name)
        is_same = stage is not None and stage.declared == record.declared and stage.is_current
        run = stage.run if stage is not None and is_same else None
        if run is None or read_manifest(RunDir(run).manifest) is None:
            raise refuse_stage(only, record.name)


def refuse_stage(only: str, before: str) -> UsageError:
    """Return the error about the stage `before`, whose samples the stage `only` needs."""
    return UsageError(
        f"--only {only}: the stage {before} before it is not complete as the file says it; run with "
        f"--until {before} first"
    )


def complete_steps(select: Select, names: SampleNames, pipeline: Pipeline) -> Select:
    """Return the steps with what `best` compares by default: the samples of a row of the pipeline's input."""
    first = pipeline.stages[0].name
    if select.best is None or select.per is not None or first not in names.runs:
        return select
    return select.model_copy(update={"per": first})


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
                    before = Selector(complete_steps(stage.select, before, pipeline), before).names
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
    kept, runs = list(job.input.kept), dict(before.runs) if before is not None else {}
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
