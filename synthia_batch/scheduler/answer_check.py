"""Validates answers against the structure that was required.

Engines enforce a structure while they sample tokens; this checks the result independently. The same
answer always gets the same verdict in the same words: they are part of the output.
"""

import dataclasses
import json
from collections.abc import Callable

from jsonschema.exceptions import ValidationError, best_match

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.formatting import clip
from synthia_batch.core.types import Failed, Finished, Message, RowSampling, Structure
from synthia_batch.job.structured_check import compile_regex, open_validator
from synthia_batch.models.prompts.formats import ParsedAnswer

INVALID = "structured_output_invalid"
"""The code of an answer that ended by itself but does not have the required structure."""
CUT = "structured_output_cut_off"
"""The code of an answer that max_tokens or the context's end cut off before it had the structure."""
SHOWN_CHARACTERS = 80


def validate_answer(structure: Structure, finished: Finished) -> Finished | Failed:
    """Return `finished` if its response has the required structure, else the failure.

    Only the engine's backend can check a grammar: an answer that ended by itself matches, one that was
    cut off does not.
    """
    is_cut = finished.finish_reason == CUT_OFF
    fault = find_fault(structure, finished.response, is_cut=is_cut)
    if fault is None:
        return finished
    begins = f"it begins {finished.response[:SHOWN_CHARACTERS]!r}"
    if is_cut:
        cut = f"cut off after {finished.completion_tokens} tokens, before it was whole; raise max_tokens"
        return Failed(ordinal=finished.ordinal, code=CUT, message=f"{cut} ({fault}; {begins})")
    return Failed(ordinal=finished.ordinal, code=INVALID, message=f"{fault}; {begins}")


def separate_reasoning(finished: Finished, read: Callable[[str], ParsedAnswer]) -> Finished:
    """Return `finished` with the reasoning that `read` finds in its texts apart."""
    if finished.called is not None:
        content = read(finished.called.content).response
        finished = dataclasses.replace(finished, called=dataclasses.replace(finished.called, content=content))
    answer = read(finished.response)
    if answer.response is finished.response and answer.reasoning is None:
        return finished
    # Reasoning that the engine already separated stays.
    reasoning = finished.reasoning if answer.reasoning is None else answer.reasoning
    return dataclasses.replace(finished, response=answer.response, reasoning=reasoning)


def read_required_call(sampling: RowSampling, outcome: Finished | Failed) -> Finished | Failed:
    """Return an outcome with the message of the calls that its row requires as its structure."""
    if isinstance(outcome, Failed):
        return outcome
    value = json.loads(outcome.response)
    calls = (
        [{"name": sampling.tool, "arguments": value}]
        if sampling.tool_choice == "named"
        else [{"name": call["name"], "arguments": call["parameters"]} for call in value]
    )
    extra = {"tool_calls": [{"type": "function", "function": call} for call in calls]}
    return dataclasses.replace(outcome, called=Message("assistant", "", extra))


def find_fault(structure: Structure, response: str, *, is_cut: bool) -> str | None:
    if structure.kind == "json_schema":
        return _find_json_fault(structure.text, response)
    if structure.kind == "regex":
        matches = compile_regex(structure.text).fullmatch(response)
        return None if matches else "the answer does not match the regular expression"
    if structure.kind == "choice":
        return None if response in json.loads(structure.text) else "the answer is none of the choices"
    return "the grammar goes on" if is_cut else None


def _find_json_fault(schema: str, response: str) -> str | None:
    try:
        value = json.loads(response, parse_constant=_refuse_constant)
    except ValueError as exc:
        return f"the answer is no JSON: {exc}"
    except RecursionError:
        return "the answer is JSON that is nested too deeply"
    try:
        fault: ValidationError | None = best_match(open_validator(schema).iter_errors(value))
    except RecursionError:
        return "the answer is JSON that is nested too deeply"
    if fault is None:
        return None
    place = "/".join(map(str, fault.absolute_path))
    return f"the answer does not fit the schema{f' at {place}' if place else ''}: {clip(fault.message, 200)}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
