"""Which column gives what: named by the job, or detected."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from synthia_batch.errors import UsageError
from synthia_batch.source.base import Columns, Selection

MESSAGES_COLUMN = "messages"
TURNS_COLUMN = "turns"
PROMPT_COLUMNS = ("prompt", "question", "instruction", "input", "text")
OUTPUT_COLUMNS = (
    "id",
    "row_index",
    "sample_index",
    "system",
    "messages",
    "response",
    "reasoning",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "seed",
    "model",
)
MAX_NAMES_SHOWN = 30


def resolve_columns(selection: Selection, names: Sequence[str], path: Path) -> Columns:
    """Return the columns to read, given the names of those that the input has.

    Where no prompt, messages or turns column is named, it is `messages` if there is such a column,
    else `turns`, else the first there is of prompt, question, instruction, input, text. Whether the
    other columns exist is left to `require_columns`: a JSONL row need not have them.

    Raises:
        UsageError: Several are named, a named one is missing, none can be detected, or a kept
            column has the name of one that every output has.
    """
    prompt, messages, turns = selection.prompt_column, selection.messages_column, selection.turns_column
    _refuse_several({"prompt": prompt, "messages": messages, "turns": turns}, path)
    if prompt is None and messages is None and turns is None:
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
        keep=_resolve_keep(selection, path),
        sampling=selection.sampling_column,
        tools=selection.tools_column,
    )
    require_columns([columns.text, *([columns.id] if columns.id is not None else [])], names, path)
    return columns


def require_columns(wanted: Iterable[str], names: Sequence[str], path: Path) -> None:
    """Make sure that every `wanted` column is among `names`.

    Raises:
        UsageError: One is not; the columns that exist are named, and the nearest suggested.
    """
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{path}: there is no column {name!r}{hint} {_show_names(names)}")


def _refuse_several(columns: Mapping[str, str | None], path: Path) -> None:
    named = [f"a {kind} column ({name!r})" for kind, name in columns.items() if name is not None]
    if len(named) > 1:
        raise UsageError(f"{path}: {' and '.join(named)} are named; name the one that holds the conversation")


def _detect_prompt(names: Sequence[str], path: Path) -> str:
    for name in PROMPT_COLUMNS:
        if name in names:
            return name
    raise UsageError(
        f"{path}: none of the columns {MESSAGES_COLUMN}, {TURNS_COLUMN}, {', '.join(PROMPT_COLUMNS)} is "
        f"there; name one with --prompt-column, --messages-column or --turns-column. {_show_names(names)}"
    )


def _resolve_keep(selection: Selection, path: Path) -> tuple[str, ...]:
    """Return the columns to keep, once each.

    The id column under the name `id` is in every output already, as text: keeping it is no more
    than that. Any other name of an output column would hide one of the two.
    """
    keep = dict.fromkeys(selection.keep_columns)
    if selection.id_column == "id":
        keep.pop("id", None)
    for name in keep:
        if name in OUTPUT_COLUMNS:
            raise UsageError(
                f"{path}: column {name!r} cannot be kept, the output has one of that name; "
                "rename it in the input, or leave it out of --keep-columns"
            )
    return tuple(keep)


def _show_names(names: Sequence[str]) -> str:
    shown = ", ".join(ascii(name) if not name.isprintable() else name for name in names[:MAX_NAMES_SHOWN])
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return f"(there are: {shown or 'none'}{more})"
