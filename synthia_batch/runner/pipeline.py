"""run_pipeline(): several stages, one after the other, each a run with all its guarantees.

A stage's rows are the finished samples of a complete run, whose digest is in the stage's identity. So the
guarantees hold by induction: the same command goes on with the stage that is not complete.

    outputs/judged-1a2b3c4d/            the last stage's run directory
      stages/answer-9c8b7a6d/           those of the stages before it
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from synthia_batch.core.console import Display
from synthia_batch.core.digest import digest_json
from synthia_batch.errors import UsageError
from synthia_batch.inputs.records.template import PromptTemplate
from synthia_batch.job.dotted import merge_values
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.merge import merge_layers
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.job.schema import Job
from synthia_batch.job.select import Select
from synthia_batch.results.select.decide import Selector
from synthia_batch.results.select.expressions import SampleNames, suggest
from synthia_batch.results.select.names import name_samples
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.run import run_resolved_job
from synthia_batch.runner.selection import SelectResult, select_samples
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.parts.schema import list_data_columns, list_optional
from synthia_batch.storage.plan_file import require_plan

_log = logging.getLogger(__name__)

FOLDER = "stages"
OF_EACH_STAGE = frozenset(
    {"engine", "pool", "output", "report", "stop_at", "max_failures", "notify", "metrics_port"}
)
"""The keys that flags may set for all stages of a pipeline."""


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
    def is_complete(self) -> bool:
        """Whether the stage after it can begin."""
        return self.exit_code == 0

    @property
    def kept(self) -> int:
        """The number of its samples that are the next stage's rows."""
        return self.result.finished if isinstance(self.result, RunResult) else self.result.kept

    def describe(self) -> str:
        """Return its numbers in words."""
        what = "finished" if isinstance(self.result, RunResult) else "kept"
        return f"{self.kept} of {self.result.samples} samples {what}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        where = str(self.result.directory)
        return {"name": self.name, "directory": where, "samples": self.result.samples, "kept": self.kept}


def run_pipeline(
    pipeline: Pipeline,
    flags: Sequence[Layer],
    make_display: Callable[[], Display],
    *,
    force: bool = False,
) -> list[StageResult]:
    """Run the stages in order up to the first that does not become complete, and return their results.

    Raises:
        UsageError: A stage cannot be run; of what a stage's own keys say, before any engine starts.
        SynthiaBatchError: As for `run_job` and `select_samples`.
    """
    _check_flags(flags)
    _check_names(pipeline, flags)
    directories: dict[str, Path] = {}
    results: list[StageResult] = []
    root: Path | None = None
    for number, stage in enumerate(pipeline.stages, start=1):
        _log.info(f"stage {number} of {len(pipeline.stages)}, {stage.name}")
        is_last = number == len(pipeline.stages)
        if stage.select is not None:
            source = directories[stage.reads or ""]
            steps = _complete_steps(stage.select, name_samples(read_facts(source)), pipeline)
            output = root if is_last else None
            found: RunResult | SelectResult = select_samples(
                source, steps, output, within=(root or Path()) / FOLDER, called=stage.name
            )
        else:
            job = resolve_job([*flags, _complete(stage, directories)])
            root = root or _find_root(pipeline, flags, job.identity)
            name = root / FOLDER / f"{stage.name}-{job.fingerprint[:8]}"
            job = dataclasses.replace(job, output=root if is_last else name)
            found = run_resolved_job(job, make_display(), force=force)
        directories[stage.name] = found.directory
        results.append(StageResult(name=stage.name, result=found))
        if not results[-1].is_complete:
            break
    return results


def _check_flags(flags: Sequence[Layer]) -> None:
    for layer in flags:
        for key in layer.values:
            if layer.origin == "flag" and key not in OF_EACH_STAGE:
                raise UsageError(
                    f"{key}: each stage of a pipeline says its own; set it in the file. Flags can set "
                    f"{', '.join(sorted(OF_EACH_STAGE))}"
                )


def _check_names(pipeline: Pipeline, flags: Sequence[Layer]) -> None:
    """Refuse expressions and templates that name what no stage before theirs has."""
    known: dict[str, SampleNames] = {}
    for stage in pipeline.stages:
        before = known.get(stage.reads or "")
        if stage.select is not None:
            if before is None:  # It reads a selection of a path, of which only the run itself knows.
                continue
            try:
                Selector(_complete_steps(stage.select, before, pipeline), before)
            except UsageError as exc:
                key = str(exc).partition(":")[0]
                raise stage.refuse(f"select.{key}", exc) from exc
            known[stage.name] = before
            continue
        given = {"input": {"path": "rows"}} if stage.reads is not None else {}
        layer = dataclasses.replace(stage.layer, values=merge_values(given, stage.layer.values))
        job = merge_layers([*flags, layer]).job
        kept = list(job.input.keep_columns)
        runs: dict[str, Sequence[str]] = {}
        if before is not None:
            _check_template(stage, job, before)
            if "keep_columns" not in stage.layer.values["input"]:
                kept = [*before.plain, *before.runs]
            runs = {name: columns for name, columns in before.runs.items() if name in kept}
        renamed = [job.input.rename_columns.get(name, name) for name in kept]
        own = [column.name for column in list_data_columns(list_optional(job.model_dump()))]
        known[stage.name] = SampleNames(
            job=stage.name,
            runs={**runs, stage.name: own},
            plain=[name for name in renamed if name not in runs],
        )


def _check_template(stage: Stage, job: Job, before: SampleNames) -> None:
    path = job.input.prompt_template
    if path is None:
        return
    try:
        columns = PromptTemplate(path.read_text(encoding="utf-8")).columns
    except (OSError, UnicodeDecodeError):
        return  # Refused with its reason when the stage is resolved.
    for name in columns:
        if name not in before.top:
            fault = UsageError(f"{path.name}: there is no {name}{suggest(name, before.top)}")
            raise stage.refuse("input.prompt_template", fault)


def _complete(stage: Stage, directories: Mapping[str, Path]) -> Layer:
    """Return the stage's layer with its input: the run that it reads, of which it keeps every column."""
    if stage.reads is None:
        return stage.layer
    source = directories[stage.reads]
    plan = require_plan(RunDir(source))
    kept = [column["name"] for column in plan["scan"]["kept"]]
    given = {"input": {"path": str(source), "keep_columns": [*kept, plan["name"]]}}
    return dataclasses.replace(stage.layer, values=merge_values(given, stage.layer.values))


def _complete_steps(select: Select, names: SampleNames, pipeline: Pipeline) -> Select:
    """Return the steps with what `best` compares by default: the samples of a row of the pipeline's input."""
    first = pipeline.stages[0].name
    if select.best is None or select.per is not None or first not in names.runs:
        return select
    return select.model_copy(update={"per": first})


def _find_root(pipeline: Pipeline, flags: Sequence[Layer], identity: Mapping[str, Any]) -> Path:
    """Return the pipeline's directory: named after its first stage's identity and all that the others say."""
    output = next((layer.values["output"] for layer in flags if "output" in layer.values), pipeline.output)
    if output is not None:
        if "://" in str(output):
            raise UsageError(f"-o {output}: a pipeline's output is a directory on this machine")
        return Path(output)
    later = [[stage.name, stage.reads, _replace_files(stage.layer.values)] for stage in pipeline.stages[1:]]
    mark = digest_json([identity, later])[:8]
    return Path("outputs") / f"{pipeline.name}-{mark}"


def _replace_files(value: Any) -> Any:
    """Return a stage's values with the digest of each file that they name in place of its path."""
    if isinstance(value, Mapping):
        return {name: _replace_files(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_files(entry) for entry in value]
    if isinstance(value, str) and value.startswith(("/", "@/")) and Path(value.removeprefix("@")).is_file():
        return blake3(Path(value.removeprefix("@")).read_bytes()).hexdigest()
    return value if isinstance(value, bool | int | float | None) else str(value)
