"""A job file for an input, drafted from its columns: it runs as it stands, and says what else it may say."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs import Columns, Scan, Selection, Source, open_files, resolve_inputs
from synthia_batch.job.fields import ADDRESS
from synthia_batch.storage.parts.schema import DATA_COLUMNS

PEEKED_ROWS = 1000
MOST_KEPT_CHARACTERS = 200
"""A column whose values are longer is offered, not kept."""
_HEAD = """\
# Look at it with `synthia-batch plan FILE`, start it with `synthia-batch run FILE`; a flag goes before
# what is said here. Paths are relative to this file. For an editor that completes and checks keys:
# `synthia-batch schema > job.schema.json`, and `# yaml-language-server: $schema=job.schema.json` on top."""
_MODEL = """\
model:
  name: demo                       # the embedded one; or a directory, a .gguf file, a Hub name
  # max_model_len: 8K              # prompt and answer together, in tokens; the model's own by default"""
_SYSTEM = """\
# NAME of the library, '@FILE' or a text. Each row is made once for each of them.
system: [synthia]"""
_KEPT_SYSTEM = """\
# Conversations keep their own system message; said aloud, this one replaces it.
# system: [synthia]"""
_TAIL = """\
# num_samples: 1                   # answers per row and system message

sampling:
  max_tokens: 1024                 # the longest answer
  # temperature: 0.75
  # top_p: 1.0
  # top_k: 50

# seed: 0
# deadline: 7h30m                  # stop by then, to be resumed by the same command
# stop_at: 07:00                   # likewise
# max_failures: 1%                 # end early where more fail
# notify: ['${NOTIFY_URL}']        # an Apprise URL, told at the end; the variable holds it"""
_SHAPES = {
    "openai-batch": "requests of an OpenAI batch",
    "sharegpt": "conversations in ShareGPT's shape",
    "alpaca": "instructions in Alpaca's shape",
}
ID_NAMES = re.compile(r"(.*[_-])?(id|uuid|key|hash)", re.IGNORECASE)
SYSTEM_NAMES = re.compile(r"system|persona|.*system_?(prompt|message).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProposal:
    """What an input was found to be. `left_out` are columns that may be kept, `systems` may be the rows'
    own system messages; both are only offered.
    """

    paths: tuple[str, ...]
    rows: int
    columns: Columns
    left_out: tuple[str, ...]
    systems: tuple[str, ...]

    @property
    def holds(self) -> str:
        """What a row is."""
        if self.columns.shape is not None:
            return _SHAPES[self.columns.shape]
        if self.columns.messages is not None:
            return "conversations in OpenAI's shape"
        return "conversations, played turn by turn" if self.columns.turns is not None else "prompts"


def propose_job(paths: Sequence[str]) -> JobProposal:
    """Return what the input at `paths` is found to be. Reads and checks all of it.

    Raises:
        UsageError: It cannot be read, or has no text to answer.
        InputRefused: It has faults.
    """
    taken = resolve_inputs(paths)
    source = open_files(taken.files)
    records = source.peek(PEEKED_ROWS)
    names = list(dict.fromkeys(name for record in records for name in record))
    selection = _choose_text(source, records, names)
    columns = source.detect(selection)
    rest = [name for name in names if name not in columns.texts]
    ids = (name for name in rest if ID_NAMES.fullmatch(name) and _is_unique(name, records))
    id_column = columns.id or next(ids, None)
    rest = [name for name in rest if name != id_column]
    systems = [name for name in rest if SYSTEM_NAMES.fullmatch(name) and _is_text(name, records)]
    rest = [name for name in rest if name not in systems]
    ours = {column.name for column in DATA_COLUMNS}
    short = tuple(
        name for name in rest if name not in ours and _measure(name, records) <= MOST_KEPT_CHARACTERS
    )
    scan = _scan_first_fit(source, replace(selection, id_column=id_column, keep_columns=short))
    return JobProposal(
        paths=taken.paths,
        rows=scan.rows,
        columns=scan.columns,
        left_out=tuple(name for name in rest if name not in scan.columns.keep),
        systems=tuple(systems),
    )


def format_proposal(proposal: JobProposal, folder: Path) -> str:
    """Return the text of the job file, to lie in `folder`.

    Raises:
        UsageError: The input has a name that no job file can hold.
    """
    paths = [path if ADDRESS.match(path) else os.path.relpath(path, folder) for path in proposal.paths]
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as exc:
            raise UsageError(f"{path!r}: the name is not valid UTF-8; rename the file") from exc
    return "\n".join([*_write_head(proposal), *_write_input(proposal, paths), *_write_rest(proposal)]) + "\n"


def _choose_text(source: Source, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Selection:
    """Return which column is to be answered: one of a usual name, else the longest of text."""
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


def _scan_first_fit(source: Source, wanted: Selection) -> Scan:
    """Return the scan with the id and the kept columns, or without what does not fit."""
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
    """Return the usual number of characters of the column's values."""
    return median(len(str(value)) for value in _list_values(name, records) or [""])


def _write_head(proposal: JobProposal) -> list[str]:
    name = proposal.paths[0].rpartition("/")[2]
    source = name if name.isprintable() else ascii(name)
    if len(proposal.paths) > 1:
        source += f" and {len(proposal.paths) - 1} more"
    what = f"# A job for {source}: {proposal.rows:,} rows of {proposal.holds}."
    return [what, *_HEAD.splitlines(), ""]


def _write_input(proposal: JobProposal, paths: Sequence[str]) -> Iterator[str]:
    columns = proposal.columns
    yield "input:"
    yield f"  path: {quote(paths[0]) if len(paths) == 1 else _quote_all(paths)}"
    if columns.shape is not None:
        yield f"  format: {columns.shape}"
    for kind, name in (("prompt", columns.prompt), ("messages", columns.messages), ("turns", columns.turns)):
        if name is not None:
            yield f"  {kind}_column: {quote(name)}"
    if columns.id is not None:
        yield f"  id_column: {quote(columns.id)}"
    else:
        yield "  # id_column: NAME                # no column has ids; a hash of the row serves"
    if columns.keep:
        yield f"  keep_columns: {_quote_all(columns.keep)}  # carried into the output"
    if proposal.left_out:
        yield f"  # also there: {_quote_all(proposal.left_out)}"
    for name in proposal.systems:
        yield f"  # system_column: {quote(name)}  # each row's own system message, instead of `system` below"
    yield "  # limit: 200                     # the first rows only, to try it out"


def _write_rest(proposal: JobProposal) -> Iterator[str]:
    yield from ("", *_MODEL.splitlines(), "")
    yield from (_KEPT_SYSTEM if proposal.columns.messages is not None else _SYSTEM).splitlines()
    if proposal.columns.turns is not None:
        yield "on_overflow: truncate-oldest       # a later turn without room: or fail, or stop"
    yield from _TAIL.splitlines()


def quote(text: str) -> str:
    """Return `text` as YAML that reads as just that text."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) is not None
    # In YAML 1.2 these are no text, or in older readers.
    is_word = text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    if is_plain and not is_word:
        return text
    return "".join(map(_escape, json.dumps(text, ensure_ascii=False)))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _quote_all(names: Sequence[str]) -> str:
    return f"[{', '.join(quote(name) for name in names)}]"
