"""What later stages of a pipeline ask or keep, as far as it is known before the first one has run."""

from collections.abc import Sequence
from dataclasses import dataclass

from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.job.schema import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterStage:
    """A stage behind the first. `does` says where its prompts come from, or what it keeps.

    `reads` is the stage that it reads, None if it names a path; `template` is the text of its template, None
    if it has none.
    """

    name: str
    reads: str | None
    does: str
    template: str | None = None


def describe_later(pipeline: Pipeline, flags: Sequence[Layer]) -> list[LaterStage]:
    """Return what the stages behind the first do, in order; of a checked pipeline."""
    return [_describe(stage, flags) for stage in pipeline.stages[1:]]


def _describe(stage: Stage, flags: Sequence[Layer]) -> LaterStage:
    if stage.select is not None:
        steps = ", ".join(f"{step}: {value}" for step, value in stage.select.identify().items())
        return LaterStage(name=stage.name, reads=stage.reads, does=f"selects by {steps}")
    job: Job = stage.declare(flags)
    path = job.input.messages_template or job.input.prompt_template
    if path is not None:
        text = path.read_text(encoding="utf-8")
        return LaterStage(name=stage.name, reads=stage.reads, does=f"asks by {path}", template=text)
    named = (job.input.prompt_column, job.input.messages_column, job.input.turns_column)
    column = next((name for name in named if name is not None), None)
    does = "asks what its input says" if column is None else f"asks the column {column}"
    if job.input.generate_role == "user":
        does = "has the model write a question"
    return LaterStage(name=stage.name, reads=stage.reads, does=does)
