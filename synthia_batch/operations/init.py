"""Propose a job file for an input from its columns. It runs as written and lists other options."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.inputs import Columns, Scan, Selection, Source, open_files, resolve_inputs
from synthia_batch.inputs.fetch.numbered_rows import count_numbered
from synthia_batch.inputs.records.columns import CONTEXT_NAMES, ID_NAMES, SYSTEM_NAMES, TOOL_NAMES
from synthia_batch.job.fields import ADDRESS
from synthia_batch.storage.parts.schema import DATA_COLUMNS

PEEKED_ROWS = 1000
MOST_KEPT_CHARACTERS = 200
"""Columns with longer values are only listed, not kept."""
_HEAD = """\
# Check it with `synthia-batch plan FILE`, start it with `synthia-batch run FILE`. Flags override this
# file. Paths are relative to this file. For completion and checks in an editor: run
# `synthia-batch schema > job.schema.json`, add `# yaml-language-server: $schema=job.schema.json` on top."""
_MODEL = """\
model:
  name: demo                       # the embedded model; or a directory, a .gguf file, a Hub name
  # max_model_len: 8K              # prompt and answer together, in tokens; default: the model's"""
_SYSTEM = """\
# A NAME from the library, '@FILE' or a text. Each row is answered once per system message.
system: [synthia]"""
_KEPT_SYSTEM = """\
# Conversations keep their own system messages, unless this line replaces them.
# system: [synthia]"""
_TAIL = """\
# num_samples: 1                   # answers per row and system message

sampling:
  max_tokens: 1024                 # the longest answer
  # temperature: 0.75
  # top_p: 1.0
  # top_k: 50

# seed: 0
# deadline: 7h30m                  # stop by then; the same command resumes
# stop_at: 07:00                   # likewise
# max_failures: 1%                 # stop if more samples fail
# notify: ['${NOTIFY_URL}']        # notify this Apprise URL at the end; set the variable to it"""
_SHAPES = {
    "openai-batch": "requests of an OpenAI batch",
    "sharegpt": "conversations in ShareGPT format",
    "alpaca": "instructions in Alpaca format",
    "ultrachat": "conversations in UltraChat's format",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProposal:
    """The detected properties of an input. `left_out` columns could be kept, `systems` could hold the rows'
    own system messages; the job file lists both as comments.
    """

    paths: tuple[str, ...]
    rows: int
    columns: Columns
    left_out: tuple[str, ...]
    systems: tuple[str, ...]

    @property
    def holds(self) -> str:
        """The kind of rows, in the plural."""
        if self.columns.shape in _SHAPES:
            return _SHAPES[self.columns.shape]
        if self.columns.messages is not None:
            return "conversations in OpenAI format"
        if self.is_numbered:
            return "numbers, for each of which the model writes a question"
        return "conversations, played turn by turn" if self.columns.turns is not None else "prompts"

    @property
    def is_numbered(self) -> bool:
        """Whether the rows are numbers."""
        return count_numbered(self.paths[0]) is not None


def propose_job(paths: Sequence[str]) -> JobProposal:
    """Return a proposal for the input at `paths`. Reads and checks all of it."""
    taken = resolve_inputs(paths)
    source = open_files(taken.files)
    records = source.peek(PEEKED_ROWS)
    names = list(dict.fromkeys(name for record in records for name in record))
    is_numbered = count_numbered(paths[0]) is not None
    selection = Selection(generate_role="user") if is_numbered else _select_text(source, records, names)
    columns = source.detect(selection)
    rest = [name for name in names if name not in columns.texts]
    ids = (name for name in rest if ID_NAMES.fullmatch(name) and _is_unique(name, records))
    id_column = columns.id or next(ids, None)
    rest = [name for name in rest if name != id_column]
    systems = [name for name in rest if SYSTEM_NAMES.fullmatch(name) and _is_text(name, records)]
    rest = [name for name in rest if name not in systems]
    reserved = {column.name for column in DATA_COLUMNS}
    short = tuple(
        name for name in rest if name not in reserved and _measure(name, records) <= MOST_KEPT_CHARACTERS
    )
    scan = _scan_leniently(source, replace(selection, id_column=id_column, keep_columns=short))
    return JobProposal(
        paths=taken.paths,
        rows=scan.rows,
        columns=scan.columns,
        left_out=tuple(name for name in rest if name not in scan.columns.keep),
        systems=tuple(systems),
    )


def format_proposal(proposal: JobProposal, folder: Path) -> str:
    """Return the text of the job file, for the directory `folder`. Raises as `relate_paths`."""
    paths = relate_paths(proposal, folder)
    return "\n".join([*_write_head(proposal), *_write_input(proposal, paths), *_write_rest(proposal)]) + "\n"


def relate_paths(proposal: JobProposal, folder: Path) -> list[str]:
    """Return the input's paths relative to `folder`; addresses stay.

    Raises:
        UsageError: The input's name is not valid UTF-8.
    """
    paths = [path if ADDRESS.match(path) else os.path.relpath(path, folder) for path in proposal.paths]
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as exc:
            raise UsageError(f"{path!r}: the name is not valid UTF-8; rename the file") from exc
    return paths


def _select_text(source: Source, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Selection:
    """Return the column to answer: one with a usual name, else the text column with the longest values."""
    try:
        source.detect(Selection())
        return Selection()
    except InputRefused:
        raise
    except UsageError:
        texts = [
            name
            for name in names
            if not ID_NAMES.fullmatch(name) and _is_text(name, records, is_everywhere=True)
        ]
        if not texts:
            raise
        return Selection(prompt_column=max(texts, key=lambda name: _measure(name, records)))


def _scan_leniently(source: Source, wanted: Selection) -> Scan:
    """Return the scan with the id column and the kept columns, or without those that the scan rejects."""
    plain = replace(wanted, id_column=None, keep_columns=())
    tries = [wanted, replace(wanted, id_column=None), replace(plain, id_column=wanted.id_column)]
    for selection in dict.fromkeys(tries):
        try:
            return _scan(source, selection)
        except UsageError:
            if selection == plain:
                raise
    return _scan(source, plain)


def _scan(source: Source, selection: Selection) -> Scan:
    with tempfile.TemporaryDirectory() as scratch:
        return source.scan(selection, Path(scratch))


def _list_values(name: str, records: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [record[name] for record in records if record.get(name) is not None]


def _is_text(name: str, records: Sequence[Mapping[str, Any]], *, is_everywhere: bool = False) -> bool:
    values = _list_values(name, records)
    is_enough = len(values) == len(records) if is_everywhere else bool(values)
    return is_enough and all(isinstance(value, str) for value in values)


def _is_unique(name: str, records: Sequence[Mapping[str, Any]]) -> bool:
    values = _list_values(name, records)
    are_ids = all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)
    return are_ids and len(values) == len(records) == len(set(values))


def _measure(name: str, records: Sequence[Mapping[str, Any]]) -> float:
    """Return the median length of the column's values, in characters."""
    return median(len(str(value)) for value in _list_values(name, records) or [""])


def _write_head(proposal: JobProposal) -> list[str]:
    path = proposal.paths[0]
    name = path if proposal.is_numbered else path.rpartition("/")[2]
    source = name if name.isprintable() else ascii(name)
    if len(proposal.paths) > 1:
        source += f" and {len(proposal.paths) - 1} more"
    title = f"# A job for {source}: {proposal.rows:,} rows of {proposal.holds}."
    return [title, *_HEAD.splitlines(), ""]


def _write_input(proposal: JobProposal, paths: Sequence[str]) -> Iterator[str]:
    columns = proposal.columns
    yield "input:"
    if proposal.is_numbered:
        yield f"  rows: {proposal.rows}"
        yield "  generate_role: user              # the model writes a question; or else:"
        yield "  # prompt_template: FILE          # writes each prompt from the columns below"
        yield "  # columns: {tone: {choice: [dry, warm]}}  # drawn for each row, and kept"
        return
    yield f"  path: {quote_paths(paths)}"
    if columns.shape in _SHAPES:
        yield f"  format: {columns.shape}"
    for kind, name in (("prompt", columns.prompt), ("messages", columns.messages), ("turns", columns.turns)):
        if name is not None:
            yield f"  {kind}_column: {quote(name)}"
    if columns.id is not None:
        yield f"  id_column: {quote(columns.id)}"
    else:
        yield "  # id_column: NAME                # no column has ids; default: a hash of the row"
    if columns.keep:
        yield f"  keep_columns: {_quote_all(columns.keep)}  # copied to the output"
    if proposal.left_out:
        yield f"  # other columns: {_quote_all(proposal.left_out)}"
    for name in proposal.systems:
        yield f"  # system_column: {quote(name)}  # each row's own system message, instead of `system` below"
    for name in proposal.left_out:
        if TOOL_NAMES.fullmatch(name):
            yield f"  # tools_column: {quote(name)}  # tool definitions, for the chat template"
        elif CONTEXT_NAMES.fullmatch(name):
            yield f"  # prompt_template: FILE  # writes each prompt from several columns, also {quote(name)}"
    yield "  # limit: 200                     # only the first rows, for a trial"


def _write_rest(proposal: JobProposal) -> Iterator[str]:
    yield from ("", *_MODEL.splitlines(), "")
    keeps_system = proposal.columns.brings_system or proposal.is_numbered
    yield from (_KEPT_SYSTEM if keeps_system else _SYSTEM).splitlines()
    if proposal.columns.turns is not None:
        yield "on_overflow: truncate-oldest       # if a later turn does not fit; or fail, or stop"
    yield from _TAIL.splitlines()


def quote(text: str) -> str:
    """Return `text` as a YAML string."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) is not None
    # YAML 1.2 or older versions do not read these as text.
    is_word = text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    if is_plain and not is_word:
        return text
    return "".join(map(_escape, json.dumps(text, ensure_ascii=False)))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def quote_paths(paths: Sequence[str]) -> str:
    """Return an input's paths as the value of `path`."""
    return quote(paths[0]) if len(paths) == 1 else _quote_all(paths)


def _quote_all(names: Sequence[str]) -> str:
    return f"[{', '.join(quote(name) for name in names)}]"
