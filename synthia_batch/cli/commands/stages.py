"""What `synthia-batch preview` and `plan --probe` print of the stages of a pipeline."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from synthia_batch.cli.columns import fold, make_visible
from synthia_batch.cli.commands.probe import format_duration, format_span
from synthia_batch.cli.rows import preview_to_dict, print_rows
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import describe_command

if TYPE_CHECKING:
    from synthia_batch.core.types import Message
    from synthia_batch.job.loading.layer import Layer
    from synthia_batch.job.loading.pipeline_file import Pipeline
    from synthia_batch.operations.pipeline_forecast import PipelineForecast
    from synthia_batch.operations.pipeline_probe import PipelineProbe, StageEstimate
    from synthia_batch.operations.pipeline_trial import StageSamples, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewChoice:
    """The flags of `preview` beside the number of rows."""

    scattered: bool
    answers: bool
    full: bool
    as_json: bool
    quiet: bool


def preview_stages(pipeline: "Pipeline", flags: "Sequence[Layer]", rows: int, choice: PreviewChoice) -> None:
    """Print the prompts of the first stage, or with answers the way of the first rows through all stages."""
    if choice.answers and choice.scattered:
        raise typer.BadParameter("--random: --answers takes the first rows of a pipeline; leave it out")
    preview = _preview_way if choice.answers else _preview_first
    preview(pipeline, flags, rows, choice)


def _preview_first(pipeline: "Pipeline", flags: "Sequence[Layer]", rows: int, choice: PreviewChoice) -> None:
    """Print the prompts of the first stage, and what each later stage asks or keeps."""
    from synthia_batch.operations.pipeline_preview import describe_later
    from synthia_batch.operations.preview import preview_prompts
    from synthia_batch.runner.pipeline_check import check_pipeline
    from synthia_batch.runner.resolve import resolve_job

    check_pipeline(pipeline, flags)
    first = pipeline.stages[0]
    job = resolve_job([*flags, first.layer])
    found = preview_prompts(job, rows, scattered=choice.scattered)
    later = describe_later(pipeline, flags)
    if choice.as_json:
        told = {"first": {"name": first.name, **preview_to_dict(job, found)}}
        show(encode_json({**told, "later": [asdict(stage) for stage in later]}, indent=2))
        return
    show(f"stage {first.name}:")
    print_rows(job, found, choice.full)
    for stage in later:
        reads = f"reads {stage.reads}, " if stage.reads is not None else ""
        show(make_visible(f"stage {stage.name}: {reads}{stage.does}"))
        if stage.template is not None:
            _print_text(stage.template.rstrip("\n"), full=choice.full)


def _preview_way(pipeline: "Pipeline", flags: "Sequence[Layer]", rows: int, choice: PreviewChoice) -> None:
    """Print what each stage makes of the first rows; exit if a signal ended that."""
    from synthia_batch.core.console import Display
    from synthia_batch.operations.pipeline_trial import read_samples, try_pipeline

    trial = try_pipeline(pipeline, flags, rows, lambda: Display(quiet=choice.quiet))
    made = read_samples(trial)
    if choice.as_json:
        stages = [_describe_stage(stage) for stage in made]
        show(encode_json({"directory": str(trial.directory), "ended": trial.why, "stages": stages}, indent=2))
    else:
        for stage in made:
            _print_stage(stage, full=choice.full)
    _tell_end(trial)
    exit_as_run(trial)


def probe_stages(
    pipeline: "Pipeline", flags: "Sequence[Layer]", forecast: "PipelineForecast", rows: int
) -> "PipelineProbe":
    """Return the estimate of the whole pipeline from its first rows; exit if a signal ended that."""
    from synthia_batch.core.console import Display
    from synthia_batch.operations.pipeline_probe import probe_pipeline

    found = probe_pipeline(pipeline, flags, forecast, rows, Display)
    _tell_end(found.trial)
    return found


def exit_as_run(trial: "Trial") -> None:
    """Exit with the code of the run of these rows, unless it is 0."""
    if trial.exit_code:
        raise typer.Exit(trial.exit_code)


def describe_stages(found: "PipelineProbe", rows: int) -> str:
    """Return the estimate as text."""
    width = max((len(stage.name) for stage in found.stages), default=0) + 2
    lines = [f"probe: the first {rows} rows through all stages, in {found.trial.directory}"]
    lines += [f"{stage.name:<{width}}{_describe_estimate(stage)}" for stage in found.stages]
    if found.seconds is not None:
        lines.append(f"whole pipeline: {format_duration(found.seconds)}")
    method = "method: ranges cover nine of ten pipelines like these rows; rows are the first, not drawn"
    return "\n".join([*lines, f"{method};\n  with under 10 answers, tokens are only an upper limit"])


def probe_to_dict(found: "PipelineProbe") -> dict[str, Any]:
    """Return the estimate as JSON-serializable values."""
    seconds = None if found.seconds is None else asdict(found.seconds)
    stages = [asdict(stage) for stage in found.stages]
    return {"directory": str(found.trial.directory), "stages": stages, "seconds": seconds}


def _describe_estimate(stage: "StageEstimate") -> str:
    text = f"keeps {stage.kept} of {stage.tried}; in all {format_span(stage.samples)} samples"
    if stage.tokens is None:
        return text
    text += f", {format_span(stage.tokens)} tokens"
    return text if stage.seconds is None else f"{text}, {format_duration(stage.seconds)}"


def _tell_end(trial: "Trial") -> None:
    """Say on stderr why not every stage was reached; exit if a signal ended the trial."""
    if trial.why is not None:
        show(f"not every stage was reached: {trial.why}", file=sys.stderr)
    place = trial.directory
    kept = f"these rows are in {place} for the same command again, and no part of the pipeline"
    show(f"{kept}: rm -r {shlex.quote(str(place))} removes them", file=sys.stderr)
    if trial.drained is not None:
        show(f"resume with: {describe_command()}", file=sys.stderr)
        raise typer.Exit(trial.drained.exit_code)


def _print_stage(stage: "StageSamples", *, full: bool) -> None:
    show(f"stage {stage.name}: {len(stage.finished)} finished, {len(stage.failed)} not")
    for sample in stage.finished:
        show(make_visible(f"{sample.id}, system {sample.system}, sample {sample.sample_index}:"))
        for text in _list_texts(sample.messages[:-1]):
            _print_text(text, full=full)
        ended = f"{sample.completion_tokens} tokens, {sample.finish_reason}"
        _print_text(f"[answer: {ended}] {sample.response}", full=full)
    for failure in stage.failed:
        name = make_visible(f"{failure.id}, sample {failure.sample_index}")
        show(f"{name}: {failure.code}: {make_visible(failure.message)}")
    show()


def _list_texts(messages: "Sequence[Message]") -> "Iterator[str]":
    for message in messages:
        yield f"[{message.role}] {message.content}"


def _print_text(text: str, *, full: bool) -> None:
    shorten: Callable[[str], str] = str if full else fold
    show("\n".join(f"  | {line}" for line in shorten(make_visible(text)).split("\n")))


def _describe_stage(stage: "StageSamples") -> dict[str, Any]:
    return {
        "name": stage.name,
        "directory": str(stage.run),
        "samples": [
            {
                "id": sample.id,
                "system": sample.system,
                "sample_index": sample.sample_index,
                "messages": [message.to_dict() for message in sample.messages],
                "finish_reason": sample.finish_reason,
                "completion_tokens": sample.completion_tokens,
            }
            for sample in stage.finished
        ],
        "failed": [failure.to_dict() for failure in stage.failed],
    }
