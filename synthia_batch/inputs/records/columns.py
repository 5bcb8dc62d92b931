"""Assigns the input's columns: those named by the job, others detected."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import join_first
from synthia_batch.core.types import MAX_ROW_BYTES
from synthia_batch.inputs.base import Columns, Selection
from synthia_batch.inputs.fetch.file_types import split_name
from synthia_batch.inputs.records.faults import REWRITE_LISTS
from synthia_batch.inputs.records.shapes import SHAPES, Shape, find_shape
from synthia_batch.job.sampling import RowKeys

MESSAGES_COLUMN = "messages"
TURNS_COLUMN = "turns"
PROMPT_COLUMNS = ("prompt", "question", "instruction", "input", "text")
MAX_NAMES_SHOWN = 30
TELLING = frozenset(
    {MESSAGES_COLUMN, TURNS_COLUMN, *PROMPT_COLUMNS}.union(
        *(
            {*shape.known_by, *shape.or_by, *shape.beside, *((shape.tools,) if shape.tools else ())}
            for shape in SHAPES.values()
        )
    )
)
"""The names by which columns are detected: an input's other columns never change how it is read."""


SYSTEM_NAMES = re.compile(r"system|persona|.*system_?(prompt|message).*", re.IGNORECASE)
ID_NAMES = re.compile(r"(.*[_-])?(id|uuid|key|hash)", re.IGNORECASE)
TOOL_NAMES = re.compile(r"tools?|functions?", re.IGNORECASE)
SAMPLING_NAMES = re.compile(r"sampling|(generation|sampling)_?(config|kwargs|params)", re.IGNORECASE)
SETTING_NAMES = re.compile("|".join((*RowKeys.model_fields, "n", "max_new_tokens", "do_sample")))
CONVERSATION_NAMES = re.compile(r"conversations?|dialog(ue)?s?|chats?|message|msgs?", re.IGNORECASE)
CONTEXT_NAMES = re.compile(
    r"history|contexts?|inputs?|passage|documents?|instances|choices|options|question|instruction",
    re.IGNORECASE,
)
_NEAR_SYNONYMS = (
    (SYSTEM_NAMES, "--system-column {}"),
    (TOOL_NAMES, "--tools-column {}"),
    (SAMPLING_NAMES, "--sampling-column {}"),
    (SETTING_NAMES, "a setting; --sampling-column takes an object of them"),
    (CONTEXT_NAMES, "--prompt-template"),
    (ID_NAMES, "--id-column {}"),
)
"""Names of columns that belong to a prompt in many files, and the flag that takes them."""


def resolve_columns(selection: Selection, names: Sequence[str], path: Path | str) -> Columns:
    """Return the columns to read of an input with columns `names`, and which of them are unused."""
    columns = dataclasses.replace(
        _resolve_used(selection, names, path),
        final=selection.final_assistant,
        message_fields=_choose_message_fields(selection),
        bad_rows=selection.on_bad_row,
        # Otherwise the limit decides only what is refused, which is no identity.
        max_row_bytes=selection.max_row_bytes if selection.on_bad_row == "fail" else MAX_ROW_BYTES,
        renamed=dict(selection.rename_columns),
    )
    for name in columns.renamed:
        if name not in columns.keep:
            raise UsageError(f"--rename-column {name}: it is not kept; add it to --keep-columns")
    return dataclasses.replace(columns, unused=tuple(name for name in names if name not in columns.used))


def _choose_message_fields(selection: Selection) -> bool | None:
    """Return whether messages have other fields; those that a template writes are known by its text."""
    is_known = selection.message_fields is not None or not selection.writes_messages
    return selection.message_fields if is_known else "tool_call" in (selection.template or "")


def _resolve_used(selection: Selection, names: Sequence[str], path: Path | str) -> Columns:
    """Return the columns to read of an input with columns `names`.

    If no prompt, messages or turns column is named, it is `messages` if the input has it, else `turns`,
    else those of a detected shape, else the first of prompt, question, instruction, input, text.
    Whether the other columns exist is left to `require_columns`: a JSONL row need not have them.
    """
    prompt, messages, turns = selection.prompt_column, selection.messages_column, selection.turns_column
    _refuse_several({"prompt": prompt, "messages": messages, "turns": turns}, path)
    if selection.generate_role == "user":
        return _resolve_template(selection, "", path)
    if selection.template is not None:
        return _resolve_template(selection, selection.template, path)
    is_named = prompt is not None or messages is not None or turns is not None
    shape = _choose_shape(selection, names, is_named=is_named)
    if shape is not None:
        return _resolve_shape(selection, shape, names, path)
    if not is_named:
        if MESSAGES_COLUMN in names:
            messages = MESSAGES_COLUMN
        elif TURNS_COLUMN in names:
            turns = TURNS_COLUMN
        else:
            prompt = _detect_prompt(names, path)
    columns = Columns(
        prompt=prompt,
        messages=messages,
        turns=turns,
        system=selection.system_column,
        id=selection.id_column,
        keep=_resolve_keep(selection),
        sampling=selection.sampling_column,
        tools=selection.tools_column,
    )
    require_columns([*columns.texts, *([columns.id] if columns.id is not None else [])], names, path)
    return columns


def _choose_shape(selection: Selection, names: Sequence[str], *, is_named: bool) -> Shape | None:
    """Return the shape that the job names or the columns indicate."""
    if selection.format in SHAPES:
        return SHAPES[selection.format]
    if selection.format != "auto" or is_named or MESSAGES_COLUMN in names or TURNS_COLUMN in names:
        return None
    shape = find_shape(names)
    # A prompt column takes precedence, so that jobs from before shapes existed do not change.
    first = next((name for name in PROMPT_COLUMNS if name in names), None)
    if shape is not None and shape.is_last and first is not None:
        return None
    return None if first in PROMPT_COLUMNS[:2] else shape


def _resolve_shape(selection: Selection, shape: Shape, names: Sequence[str], path: Path | str) -> Columns:
    named = {
        "prompt": selection.prompt_column,
        "messages": selection.messages_column,
        "turns": selection.turns_column,
    }
    kind, text = next(
        ((kind, name) for kind, name in named.items() if name is not None), (shape.kind, shape.text)
    )
    if kind != shape.kind and kind not in shape.other_kinds:
        raise UsageError(
            f"{path}: records of the format {shape.name} have no {kind} column; omit --{kind}-column, "
            "or set --input-format plain"
        )
    identifier = selection.id_column or shape.id
    # Those of a named shape may be in later rows only.
    is_named = selection.format == shape.name and shape.name != "openai-batch"
    beside = [
        name for name in shape.beside if name != selection.system_column and (is_named or name in names)
    ]
    # Those of a request stand in its body, whatever the column's name.
    tools = text if shape.tools == shape.text else shape.tools
    has_tools = tools is not None and (is_named or tools in names)
    if shape.name == "openai-batch" and selection.tools_column is not None:
        raise UsageError(f"{path}: the request bodies have their tools; omit --tools-column")
    columns = Columns(
        prompt=text if kind == "prompt" else None,
        messages=text if kind == "messages" else None,
        turns=text if kind == "turns" else None,
        system=selection.system_column,
        id=identifier,
        keep=_resolve_keep(selection),
        sampling=_choose_sampling(selection, shape, path),
        tools=selection.tools_column or (tools if has_tools else None),
        shape=shape.name,
        reads=(text, *beside) if beside or shape.name in ("alpaca", "openai-batch") else (),
    )
    require_columns([text, *([identifier] if identifier is not None else [])], names, path)
    return columns


def _choose_sampling(selection: Selection, shape: Shape, path: Path | str) -> str | None:
    """Return the column of a row's sampling settings; requests have them in the body, with the messages."""
    if shape.name != "openai-batch":
        return selection.sampling_column
    if selection.sampling_column is not None:
        raise UsageError(f"{path}: the request bodies set their sampling; omit --sampling-column")
    return selection.messages_column or shape.text


def _resolve_template(selection: Selection, template: str, path: Path | str) -> Columns:
    """Return the columns for prompts that a template writes. Whether they exist is checked in each row.

    An empty template is that of a job that asks nothing: the model writes the user's message.
    """
    # Loading Jinja takes 50 ms, and few jobs have a template.
    from synthia_batch.inputs.records.template import PromptTemplate

    writer = "--messages-template" if selection.writes_messages else "--prompt-template"
    named = selection.prompt_column or selection.messages_column or selection.turns_column
    if not template and selection.template is not None:
        raise UsageError(f"{path}: generate_role user asks nothing; omit {writer}")
    if named is not None or selection.format in SHAPES:
        what = f"the column {named!r}" if named is not None else f"--input-format {selection.format}"
        does = f"{writer} writes the prompts" if template else "generate_role user asks nothing"
        raise UsageError(f"{path}: {does}; omit {what}")
    return Columns(
        prompt=None,
        messages=None,
        system=selection.system_column,
        id=selection.id_column,
        keep=_resolve_keep(selection),
        sampling=selection.sampling_column,
        tools=selection.tools_column,
        reads=PromptTemplate(template, writer).columns if template else (),
        template=template,
        writes_messages=selection.writes_messages,
        generate_role=selection.generate_role,
    )


def require_columns(wanted: Iterable[str], names: Sequence[str], path: Path | str) -> None:
    """Raise UsageError unless every `wanted` column is among `names`."""
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{path}: no column {name!r}{hint} {_show_names(names)}")


def _refuse_several(columns: Mapping[str, str | None], path: Path | str) -> None:
    named = [f"a {kind} column ({name!r})" for kind, name in columns.items() if name is not None]
    if len(named) > 1:
        raise UsageError(f"{path}: {' and '.join(named)} are named; name only the one with the conversation")


def _detect_prompt(names: Sequence[str], path: Path | str) -> str:
    for name in PROMPT_COLUMNS:
        if name in names:
            return name
    known = ", ".join((MESSAGES_COLUMN, TURNS_COLUMN, *PROMPT_COLUMNS))
    prompt, messages = (
        f"--prompt-column{_suggest_prompt(names)}",
        f"--messages-column{_suggest_messages(names)}",
    )
    raise UsageError(
        f"{path}: none of the columns {known} exists; name one with {prompt}, {messages} or --turns-column. "
        f"{_show_names(names)}{_suggest_rewrite(names, path)}"
    )


def _suggest_rewrite(names: Sequence[str], path: Path | str) -> str:
    """Return how to rewrite a file whose rows are not what its columns seem to be, after a space."""
    if {"role", "content"} <= set(names) or {"from", "value"} <= set(names):
        return f" {REWRITE_LISTS}"
    kind = split_name(str(path)).kind
    if kind is not None and kind.name in ("csv", "tsv"):
        return (
            " If its first line is a row, write a line with the columns' names above it, such as prompt,topic"
        )
    return ""


def _suggest_prompt(names: Sequence[str]) -> str:
    """Return the first name that differs from a usual one in its case, after a space."""
    return next((f" {name}" for name in names if name.lower() in PROMPT_COLUMNS), "")


def _suggest_messages(names: Sequence[str]) -> str:
    """Return the first name that conversations often have, after a space."""
    return next((f" {name}" for name in names if CONVERSATION_NAMES.fullmatch(name)), "")


def _resolve_keep(selection: Selection) -> tuple[str, ...]:
    """Return the columns to keep, once each, without an id column named `id`: every output has it."""
    keep = dict.fromkeys(selection.keep_columns)
    if selection.id_column == "id":
        keep.pop("id", None)
    return tuple(keep)


def _show_names(names: Sequence[str]) -> str:
    return f"(columns: {show_names(names) or 'none'})"


def describe_unused(names: Sequence[str]) -> str:
    """Return the names of unused columns in one line, first those that a flag would use, with the flag."""
    hints = {name: hint for name in names if (hint := _find_flag(name))}
    rest = [name for name in names if name not in hints]
    shown = [f"{show_names([name])} ({hint})" for name, hint in hints.items()]
    return ", ".join([*shown, *([show_names(rest)] if rest else [])])


def _find_flag(name: str) -> str:
    return next((hint for names, hint in _NEAR_SYNONYMS if names.fullmatch(name)), "").format(name)


def spell_name(name: str) -> str:
    """Return the name of a column as a template or an expression has it."""
    return name if name.isidentifier() and name not in ("row", "self") else f'row["{name}"]'


def show_names(names: Sequence[str]) -> str:
    """Return the names in one line, the first 30 of them."""
    return join_first([name if name.isprintable() else ascii(name) for name in names], MAX_NAMES_SHOWN)
