"""`synthia-batch preview`: the exact prompts of some rows, optionally with answers."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthia_batch.cli.columns import Column, fold, make_visible, print_columns
from synthia_batch.cli.flags import JobFlags
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import describe_command

if TYPE_CHECKING:
    from synthia_batch.core.types import Outcome, Row
    from synthia_batch.job.resolved import ResolvedJob
    from synthia_batch.operations.preview import JobPreview, SamplePreview


def preview(
    flags: JobFlags,
    count: Annotated[
        int | None,
        typer.Option(
            "-n", "--rows", min=1, metavar="N", help="Rows to show, from the first. [3; 1 of a pipeline]"
        ),
    ] = None,
    scattered: Annotated[
        bool, typer.Option("--random", help="Show rows from across the input, always the same ones.")
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers", help="Generate answers. They count as done when the run starts; a pipeline's do not."
        ),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Show long texts in full.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Show the exact prompts of a few rows for each system message, and their answers with --answers.

    Takes the flags of `run`, except that -n is the number of rows. Writes nothing without --answers.

    Of a pipeline, shows the prompts of the first stage and what each later one asks or keeps; with --answers
    the way of the first rows through all stages, which its run makes anew.
    """
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.operations.preview import preview_answers, preview_prompts
    from synthia_batch.runner.resolve import resolve_job

    set_verbosity(quiet=quiet)
    display = Display(quiet=quiet)
    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        from synthia_batch.cli.commands.stages import PreviewChoice, preview_stages

        choice = PreviewChoice(scattered=scattered, answers=answers, full=full, as_json=as_json, quiet=quiet)
        preview_stages(pipeline, layers[:-1], count or 1, choice)
        return
    job, count = resolve_job(layers), count or 3
    if answers:
        found = preview_answers(job, count, display, scattered=scattered)
    else:
        found = preview_prompts(job, count, scattered=scattered)
    if as_json:
        show(encode_json(preview_to_dict(job, found), indent=2))
    else:
        print_rows(job, found, full)
    if answers:
        _print_messages(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def print_rows(job: "ResolvedJob", found: "JobPreview", full: bool) -> None:
    """Print the prompts of each row, and the answers if they are known."""
    day = _find_day(job)
    told = [f"{name}={json.dumps(value)}" for name, value in job.prompt.kwargs.items()]
    if told or day:
        show(f"chat template: {', '.join([*told, *([f'today is {day} (template_date)'] if day else [])])}\n")
    for row, samples in _group_by_row(found):
        place = make_visible(f"{job.inputs[row.file].name}:{row.line}: row_index {row.index}, id {row.id}")
        show(place)
        shown = [_make_column(job, sample, full) for sample in samples]
        depth = max(len(column.texts) for column in shown)
        print_columns([_pad(column, depth) for column in shown])
        show()


def _find_day(job: "ResolvedJob") -> str | None:
    """Return the day that the chat template gets, None if it asks for none."""
    from synthia_batch.models.prompts.tokenizer import find_template_day

    return find_template_day(job.prompt)


def _group_by_row(found: "JobPreview") -> "Iterator[tuple[Row, list[SamplePreview]]]":
    for _, group in groupby(found.samples, key=lambda one: one.sample.row.index):
        samples = list(group)
        yield samples[0].sample.row, samples


def _make_column(job: "ResolvedJob", one: "SamplePreview", full: bool) -> Column:
    shorten = (lambda text: text) if full else fold
    texts = [] if one.prompt is None else [shorten(make_visible(one.prompt.text))]
    if one.fault is not None:
        texts.append(make_visible(f"[will fail: {one.fault.code}: {one.fault}]"))
    if one.prompt is not None and one.prompt.lookalikes:
        texts.append(f"[{one.prompt.lookalikes} texts look like special tokens, but stay text]")
    if one.outcome is None:
        texts += [f"[follow-up] {make_visible(question)}" for question in one.sample.row.follow_ups]
    else:
        texts += [shorten(make_visible(text)) for text in _list_answers(one, one.outcome)]
    counted = f"{one.prompt_tokens} prompt tokens, room for {one.room}"
    if job.engine.is_elsewhere:
        counted = f"{one.prompt_tokens} bytes; only the server knows the tokens"
    size = counted if one.prompt is not None else "no prompt"
    return Column(title=f"system {make_visible(one.sample.system)}: {size}", texts=texts)


def _pad(column: Column, depth: int) -> Column:
    return Column(title=column.title, texts=[*column.texts, *[""] * (depth - len(column.texts))])


def _list_answers(one: "SamplePreview", outcome: "Outcome") -> Iterator[str]:
    """Yield the answers, and between those of a conversation the follow-up questions."""
    from synthia_batch.core.types import Failed

    for answer, question in zip(outcome.earlier, one.sample.row.follow_ups, strict=False):
        yield f"[answer] {answer}"
        yield f"[follow-up] {question}"
    if isinstance(outcome, Failed):
        yield f"[failed: {outcome.code}] {outcome.message}"
        return
    if outcome.reasoning is not None:
        yield f"[reasoning] {outcome.reasoning}"
    tokens = f"{outcome.completion_tokens} tokens{' in total' if outcome.earlier else ''}"
    yield f"[answer: {tokens}, {outcome.finish_reason}] {outcome.response}"


def _print_messages(found: "JobPreview") -> None:
    if found.drained is not None:
        show(f"drained on {found.drained.label}; resume with: {describe_command()}", file=sys.stderr)
    elif found.is_complete:
        show(f"the run is complete: {found.directory}", file=sys.stderr)
    else:
        done = f"{found.ended} of {found.total} samples are done"
        show(f"{done} in {found.directory}; `run` with the same flags generates the others", file=sys.stderr)
    if found.drained is None and found.has_only_failures:
        place = shlex.quote(str(found.directory))
        show(f"each of these samples failed; what helps: synthia-batch failed {place}", file=sys.stderr)


def preview_to_dict(job: "ResolvedJob", found: "JobPreview") -> dict[str, Any]:
    """Return the prompts of each row as JSON-serializable values."""
    return {
        "directory": str(found.directory).encode(errors="backslashreplace").decode(),
        "model": job.model.name,
        "prompt_format": job.prompt.format,
        "chat_template_kwargs": dict(job.prompt.kwargs),
        "template_date": _find_day(job),
        "max_model_len": job.engine.max_model_len,
        "max_tokens": job.engine.sampling.max_tokens,
        "made_now": found.made,
        "rows": [
            {
                "row_index": row.index,
                "id": row.id,
                "line": row.line,
                "follow_ups": list(row.follow_ups),
                "samples": _list_dicts(samples),
            }
            for row, samples in _group_by_row(found)
        ],
    }


def _list_dicts(samples: "Sequence[SamplePreview]") -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [
        {
            "system": one.sample.system,
            "prompt": None if one.prompt is None else one.prompt.text,
            "prompt_tokens": one.prompt_tokens,
            "room": one.room,
            "lookalikes": 0 if one.prompt is None else one.prompt.lookalikes,
            "fault": None if one.fault is None else {"code": one.fault.code, "message": str(one.fault)},
            "answer": None if one.outcome is None else _drop_internals(asdict(one.outcome)),
        }
        for one in samples
    ]


def _drop_internals(outcome: dict[str, Any]) -> dict[str, Any]:
    hidden = ("ordinal", "turn", "logprob", "flags")
    return {key: value for key, value in outcome.items() if key not in hidden}
