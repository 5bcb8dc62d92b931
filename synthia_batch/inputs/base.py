"""The interface of a source, and the values that it uses.

A source is read twice: `scan` checks all of it in one pass; `read_rows` then returns any range of its rows,
starting near that range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import MAX_ROW_BYTES, KeptColumn, Row
from synthia_batch.job.input_section import BadRow, FinalAssistant, GenerateRole

if TYPE_CHECKING:  # It imports numpy, which a command without input does not need.
    from synthia_batch.inputs.records.row_ids import DuplicateIndex

CHECKPOINT_ROWS = 1000
"""Rows between checkpoints."""
DETECT_ROWS = 1000
"""The most rows of a file from which columns are detected."""
PROGRESS_ROWS = 10_000
"""Rows between calls of `on_progress`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The job's settings for the input. Columns that are None are detected, or not used.

    With `first_rows`, only so many are scanned; their columns are detected as for all.

    `format` is the shape of the records: one of `shapes.SHAPES`, `plain`, or `auto` to detect it.
    `template` is the text of a Jinja template for the prompts or, if it `writes_messages`, conversations.
    """

    prompt_column: str | None = None
    messages_column: str | None = None
    turns_column: str | None = None
    system_column: str | None = None
    id_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    sampling_column: str | None = None
    tools_column: str | None = None
    limit: int | None = None
    format: str = "auto"
    template: str | None = None
    writes_messages: bool = False
    generate_role: GenerateRole = "assistant"
    final_assistant: FinalAssistant = "regenerate"
    message_fields: bool | None = None
    on_bad_row: BadRow = "refuse"
    max_row_bytes: int = MAX_ROW_BYTES
    rename_columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    first_rows: int | None = None

    @property
    def names_prompt(self) -> bool:
        """Whether the job says where the prompts come from."""
        return {self.prompt_column, self.messages_column, self.turns_column, self.template} != {None}


_UNUSED: tuple[Any, ...] = (None, False, (), {}, "regenerate", "refuse", "assistant", MAX_ROW_BYTES)
"""Values of later fields of `Columns` that change no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The use of each column. Exactly one of `prompt`, `messages`, `turns` and `template` is not None.

    `shape` is that of records from other programs, one of `shapes.SHAPES`, or `messages` for turns that are
    conversations. `reads` are the columns of a prompt that is composed of several; `template` is the Jinja
    text that composes it, or a conversation if it `writes_messages`; empty if `generate_role` is user.
    `model` is the model that the requests of an OpenAI batch name, `choices` how many answers each of them
    wants if that is not one, and `logprobs` whether any of them wants log-probabilities. `final` is the
    treatment of an answer that ends a conversation. `message_fields`: messages may have other fields than
    role and content, which the output has in a column of its own. `bad_rows` says whether rows with faults
    are refused or fail, as rows of over `max_row_bytes` then do. `renamed` are the kept columns with another
    name in the output. `unused` are the input's other columns, as far as they were seen when these were
    determined: for messages, and not saved.
    """

    prompt: str | None
    messages: str | None
    system: str | None
    id: str | None
    keep: tuple[str, ...]
    turns: str | None = None
    sampling: str | None = None
    tools: str | None = None
    shape: str | None = None
    reads: tuple[str, ...] = ()
    template: str | None = None
    writes_messages: bool = False
    generate_role: GenerateRole = "assistant"
    model: str | None = None
    choices: int | None = None
    logprobs: bool = False
    final: FinalAssistant = "regenerate"
    message_fields: bool | None = None
    bad_rows: BadRow = "refuse"
    max_row_bytes: int = MAX_ROW_BYTES
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def text(self) -> str | None:
        """The column of the prompt, messages or turns; None for a template."""
        named = [name for name in (self.prompt, self.messages, self.turns) if name is not None]
        if len(named) + (self.template is not None) != 1:
            raise ValueError("columns without exactly one prompt, messages or turns column, or a template")
        return named[0] if named else None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every column of the conversation."""
        return self.reads or tuple(name for name in (self.text,) if name is not None)

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The names that the kept columns have in the output."""
        return tuple(self.renamed.get(name, name) for name in self.keep)

    @property
    def brings_system(self) -> bool:
        """Whether the conversation of a row can begin with a system message."""
        is_conversation = self.messages is not None or (self.turns is not None and self.shape is not None)
        return is_conversation or self.writes_messages or (self.template is None and "system" in self.reads)

    @property
    def used(self) -> tuple[str, ...]:
        """Every column that is read, once each."""
        named = (*self.texts, self.system, self.id, self.sampling, self.tools, *self.keep)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values. Later additions are omitted if unused: plans from before them stay equal."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "messages": self.messages,
            "system": self.system,
            "id": self.id,
            "keep": list(self.keep),
        }
        later = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        used = {name: value for name, value in later.items() if name not in values and value not in _UNUSED}
        return values | used | ({"reads": list(self.reads)} if self.reads else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Columns:
        """Return the columns from the result of `to_dict`. Raises KeyError or TypeError."""
        return cls(**{**data, "keep": tuple(data["keep"]), "reads": tuple(data.get("reads", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The start of a row: `line` counts from 1, `offset` is in bytes."""

    offset: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileScan:
    """Result of a pass over one file: the number of selected rows, its bytes, the start of every 1,000th row.

    There are no checkpoints if the format has an index of its own.
    """

    rows: int
    size: int
    checkpoints: tuple[Checkpoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        points = [[checkpoint.offset, checkpoint.line] for checkpoint in self.checkpoints]
        return {"rows": self.rows, "size": self.size, "checkpoints": points}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileScan:
        """Return it from the result of `to_dict`. Raises KeyError, TypeError or ValueError."""
        points = tuple(Checkpoint(offset=offset, line=line) for offset, line in data["checkpoints"])
        return cls(rows=int(data["rows"]), size=int(data["size"]), checkpoints=points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Result of a pass over the input, as `read_rows` needs it.

    `rows` is the number of selected rows, `size` that of the input's bytes. `checkpoints` are as in
    `FileScan`; an input of several files has none, but the scan of each file in `files`.
    """

    rows: int
    size: int
    columns: Columns
    kept: tuple[KeptColumn, ...]
    checkpoints: tuple[Checkpoint, ...]
    duplicates: DuplicateIndex = field(compare=False)
    files: tuple[FileScan, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the duplicates as JSON values."""
        values = {
            "rows": self.rows,
            "size": self.size,
            "columns": self.columns.to_dict(),
            "kept": [_describe_kept(column) for column in self.kept],
            "checkpoints": [[checkpoint.offset, checkpoint.line] for checkpoint in self.checkpoints],
        }
        return {**values, "files": [file.to_dict() for file in self.files]} if self.files else values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], duplicates: DuplicateIndex) -> Scan:
        """Return the scan from the result of `to_dict`. Raises IntegrityError for anything else."""
        try:
            return cls(
                rows=int(data["rows"]),
                size=int(data["size"]),
                columns=Columns.from_dict(data["columns"]),
                kept=tuple(KeptColumn(**column) for column in data["kept"]),
                checkpoints=FileScan.from_dict(data).checkpoints,
                duplicates=duplicates,
                files=tuple(FileScan.from_dict(file) for file in data.get("files", ())),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(
                f"the plan's record of its input is damaged ({exc!r}); "
                "restore the run directory, or start a new one"
            ) from exc

    def keep_types(self, saved: Mapping[str, Any]) -> Scan:
        """Return the scan with kept lists and objects as JSON text, where the `saved` one has them so.

        In runs that began before such columns had types, they have none.
        """
        texts = {column["name"] for column in saved.get("kept", ()) if column.get("type") == "json"}
        kept = tuple(replace(each, type="json") if each.name in texts else each for each in self.kept)
        return replace(self, kept=kept)


def _describe_kept(column: KeptColumn) -> dict[str, str]:
    """Return the column as JSON values. A feature is omitted if unused: plans from before it stay equal."""
    values = {"name": column.name, "type": column.type}
    return values if column.feature is None else {**values, "feature": column.feature}


class Source(Protocol):
    """The input, of one file or several. Not thread-safe."""

    @property
    def shown(self) -> str:
        """The input, as the user named it."""

    def locate(self, row: Row) -> str:
        """Return the place of `row`, as file:line."""

    def detect(self, selection: Selection) -> Columns:
        """Return the columns that a scan will use, from the first rows of each file.

        A scan refuses later rows whose columns would have led to others.

        Raises:
            UsageError: The selection does not fit the input's columns.
            InputRefused: None of the first rows can be read, or there are none.
        """

    def peek(self, count: int) -> list[dict[str, Any]]:
        """Return the first `count` records with all their columns.

        Raises:
            UsageError: The file cannot be read.
            InputRefused: One of them has faults.
        """

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass of bounded memory.

        `scratch` is a directory for temporary files: 16 bytes per row if there are over 500,000 rows. They
        are removed or unlinked on return. `on_progress` gets the number of rows so far. Rows after a limit
        are neither read nor checked.

        Raises:
            UsageError: The selection does not fit the input's columns.
            InputRefused: The file or its rows have faults.
        """

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded); a range that follows the last one continues there.

        Raises:
            IntegrityError: The file is not the one that was scanned.
        """

    def check(self, scan: Scan) -> None:
        """Raise IntegrityError if a file changed since the job was resolved, or is not the one scanned."""
