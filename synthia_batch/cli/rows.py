"""Prints rows of an input with their prompts, and their answers if they are known."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from synthia_batch.cli.columns import Column, fold, make_visible, print_columns
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.core.types import Outcome, Row
    from synthia_batch.job.resolved import ResolvedJob
    from synthia_batch.operations.preview import JobPreview, SamplePreview


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
