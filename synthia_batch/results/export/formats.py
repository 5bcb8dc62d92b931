"""Converts finished samples to records for other programs. Pure."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from synthia_batch.core.types import Message
from synthia_batch.results.export.preference import (
    to_preference,
    to_preference_messages,
    to_preference_sharegpt,
)
from synthia_batch.results.export.turns import find_calls, list_messages, list_spoken
from synthia_batch.results.read.samples import FinishedSample

if TYPE_CHECKING:  # it loads pyarrow, and --help lists the formats
    from synthia_batch.results.read.failures import FailedSample

_TABLE_COLUMNS = (
    "id", "row_index", "sample_index", "system", "prompt", "response", "reasoning", "finish_reason",
    "prompt_tokens", "completion_tokens",
)  # fmt: skip

Convert = Callable[..., Iterator[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """An export format. Every record has `columns`. `takes_failed`: `convert` also gets the failed samples,
    as `failed`. `takes_logprobs`: records include log-probabilities. `takes_columns`: records can have kept
    columns. `takes_pairs`: `convert` gets pairs instead of samples.
    """

    name: str
    columns: tuple[str, ...]
    convert: Convert
    takes_failed: bool = False
    takes_logprobs: bool = False
    takes_columns: bool = True
    takes_pairs: bool = False


def to_messages(samples: Iterable[FinishedSample]) -> Iterator[dict[str, Any]]:
    """Yield `messages` in OpenAI's format, as TRL, Axolotl and LLaMA-Factory read conversations."""
    for sample in samples:
        yield {"messages": list_messages(sample.messages), **sample.kept}


def to_prompt_completion(samples: Iterable[FinishedSample]) -> Iterator[dict[str, Any]]:
    """Yield `prompt` and `completion`, the last answer: TRL trains on the completion alone."""
    for sample in samples:
        yield {
            "prompt": list_messages(sample.messages[:-1]),
            "completion": list_messages(sample.messages[-1:]),
            **sample.kept,
        }


def to_sharegpt(samples: Iterable[FinishedSample]) -> Iterator[dict[str, Any]]:
    """Yield `conversations` of `from` (system, human, gpt) and `value`."""
    for sample in samples:
        turns = [spoken for turn in sample.messages for spoken in list_spoken(turn)]
        yield {"conversations": turns, **sample.kept}


def to_alpaca(samples: Iterable[FinishedSample]) -> Iterator[dict[str, Any]]:
    """Yield Alpaca's `instruction`, `input` (empty) and `output`, with LLaMA-Factory's `system`, `history`.

    `history` holds the previous questions with their answers.
    """
    for sample in samples:
        *previous, (question, answer) = _pair_turns(sample)
        yield {
            "instruction": question,
            "input": "",
            "output": answer,
            "system": _find_system(sample.messages),
            "history": [list(pair) for pair in previous],
            **sample.kept,
        }


def to_synthia(samples: Iterable[FinishedSample]) -> Iterator[dict[str, Any]]:
    """Yield `prompt` and `answer` of every question, as the loop of the Synthia model cards writes them."""
    for sample in samples:
        for question, answer in _pair_turns(sample):
            yield {"prompt": question, "answer": answer, **sample.kept}


def to_table(samples: Iterable[FinishedSample]) -> Iterator[dict[str, Any]]:
    """Yield flat rows: the last question, its answer, and their metadata."""
    for sample in samples:
        texts = {"prompt": _pair_turns(sample)[-1][0], "reasoning": sample.reasoning or ""}
        row = {name: texts[name] if name in texts else getattr(sample, name) for name in _TABLE_COLUMNS}
        yield {**row, **sample.kept}


def to_openai_batch(
    samples: Iterable[FinishedSample], failed: Iterable["FailedSample"] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the lines of an OpenAI batch's output file: a chat completion for each row and system message.

    `custom_id` is the row's id, with `:NAME` appended for the second and later system messages of a row.
    Samples become choices. `created` is 0, so that the same run gives the same file. Finish reasons are
    OpenAI's `stop`, `length` and `tool_calls`. A row of which samples failed has the error in its first line:
    beside the other choices, or instead of a response if no sample of it was finished.
    """
    errors: dict[int, tuple[FailedSample, int]] = {}
    for sample in failed:
        first, count = errors.get(sample.row_index, (sample, 0))
        errors[sample.row_index] = (first, count + 1)
    first_systems: dict[int, str] = {}
    for (row, system), group in groupby(samples, key=lambda sample: (sample.row_index, sample.system)):
        choices = list(group)
        first_system = first_systems.setdefault(row, system)
        if len(first_systems) > 1:  # rows come in order: only the latest is needed
            first_systems = {row: first_system}
        custom_id = choices[0].id if system == first_system else f"{choices[0].id}:{system}"
        yield {
            "id": f"batch_req_{row}_{system}",
            "custom_id": custom_id,
            "response": {
                "status_code": 200,
                "request_id": f"{row}_{system}",
                "body": _complete_chat(f"chatcmpl-{row}-{system}", choices),
            },
            "error": _describe_error(*errors.pop(row)) if row in errors else None,
        }
    for row, (sample, count) in errors.items():
        error = _describe_error(sample, count)
        yield {"id": f"batch_req_{row}", "custom_id": sample.id, "response": None, "error": error}


def _describe_error(sample: "FailedSample", count: int) -> dict[str, str]:
    more = f" ({count} samples of this request failed)" if count > 1 else ""
    return {"code": sample.code, "message": f"{sample.message}{more}"}


FORMATS: Mapping[str, ExportFormat] = {
    one.name: one
    for one in (
        ExportFormat(name="messages", columns=("messages",), convert=to_messages),
        ExportFormat(
            name="prompt-completion", columns=("prompt", "completion"), convert=to_prompt_completion
        ),
        ExportFormat(name="sharegpt", columns=("conversations",), convert=to_sharegpt),
        ExportFormat(
            name="alpaca", columns=("instruction", "input", "output", "system", "history"), convert=to_alpaca
        ),
        ExportFormat(
            name="openai-batch", columns=("id", "custom_id", "response", "error"), convert=to_openai_batch,
            takes_failed=True, takes_logprobs=True, takes_columns=False,
        ),
        ExportFormat(
            name="preference", columns=("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
            convert=to_preference, takes_columns=False, takes_pairs=True,
        ),
        ExportFormat(
            name="preference-messages", columns=("messages", "chosen", "rejected"),
            convert=to_preference_messages, takes_columns=False, takes_pairs=True,
        ),
        ExportFormat(
            name="preference-sharegpt", columns=("conversations", "chosen", "rejected"),
            convert=to_preference_sharegpt, takes_columns=False, takes_pairs=True,
        ),
        ExportFormat(name="synthia-jsonl", columns=("prompt", "answer"), convert=to_synthia),
        ExportFormat(name="csv", columns=_TABLE_COLUMNS, convert=to_table),
    )
}  # fmt: skip


def _find_system(messages: Sequence[Message]) -> str:
    return messages[0].content if messages[0].role == "system" else ""


def _pair_turns(sample: FinishedSample) -> list[tuple[str, str]]:
    """Return each answer with the messages since the previous answer, without system messages.

    A last answer that calls tools is its text as it was generated; a last message of the user was generated,
    too, with nothing asked.
    """
    pairs: list[tuple[str, str]] = []
    questions: list[str] = []
    for turn in sample.messages:
        if turn.role == "assistant":
            pairs.append(("\n\n".join(questions), turn.content))
            questions = []
        elif turn.role != "system":
            questions.append(turn.content)
    if questions:
        pairs.append(("\n\n".join(questions[:-1]), questions[-1]))
    if find_calls(sample.messages[-1]):
        pairs[-1] = (pairs[-1][0], sample.response)
    return pairs


def _list_logprobs(choice: FinishedSample) -> dict[str, Any] | None:
    if choice.logprobs is None:
        return None
    content = [
        {**_convert_entry(place), "top_logprobs": [_convert_entry(entry) for entry in place["top"]]}
        for place in choice.logprobs
    ]
    return {"content": content, "refusal": None}


def _convert_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    # OpenAI's value for impossible tokens: JSON has no infinity.
    value = max(entry["logprob"], -9999.0)
    return {"token": entry["token"], "bytes": list(entry["token"].encode()), "logprob": value}


def _list_calls(choice: FinishedSample) -> list[dict[str, Any]]:
    """Return the tool calls of an answer in OpenAI's shape. Their ids are the same in each export."""
    return [
        {
            "id": f"call_{choice.row_index}_{choice.sample_index}_{number}",
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": _encode_arguments(call["function"])},
        }
        for number, call in enumerate(find_calls(choice.messages[-1]))
    ]


def _encode_arguments(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments") or {}
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _describe_answer(choice: FinishedSample) -> dict[str, Any]:
    calls = _list_calls(choice)
    content = (choice.messages[-1].content or None) if calls else choice.response
    message = {"role": "assistant", "content": content, "refusal": None}
    return {**message, "tool_calls": calls} if calls else message


def _choose_finish_reason(choice: FinishedSample) -> str:
    if choice.is_cut_off:
        return "length"
    return "tool_calls" if find_calls(choice.messages[-1]) else "stop"


def _complete_chat(name: str, choices: Sequence[FinishedSample]) -> dict[str, Any]:
    prompt, answers = choices[0].prompt_tokens, sum(choice.completion_tokens for choice in choices)
    return {
        "id": name,
        "object": "chat.completion",
        "created": 0,
        "model": choices[0].model,
        "choices": [
            {
                "index": index,
                "message": _describe_answer(choice),
                "logprobs": _list_logprobs(choice),
                "finish_reason": _choose_finish_reason(choice),
            }
            for index, choice in enumerate(choices)
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers},
    }
