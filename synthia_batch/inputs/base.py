"""The interface of a source, and the values that it takes and gives.

A source is read twice: `scan` goes through all of it once and refuses it if anything is wrong;
`read_rows` then gives any range of its rows, starting near that range and not at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.errors import IntegrityError

if TYPE_CHECKING:  # numpy is behind it, which a command without input has no need to load.
    from synthia_batch.inputs.records.row_ids import DuplicateIndex

CHECKPOINT_ROWS = 1000
"""Rows from one checkpoint to the next."""
PROGRESS_ROWS = 10_000
"""Rows from one call of `on_progress` to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the job asks of the input. Columns that are None are detected, or not used.

    `format` is the shape of the records: one of `columns.SHAPES`, `plain`, or `auto` to find it.
    `template` is the text of a Jinja template that writes the prompts.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column gives what. Exactly one of `prompt`, `messages`, `turns` and `template` is not None.

    `shape` is how the records are made where they are not ours, one of `columns.SHAPES`. `reads` are
    the columns that a prompt is made of where it is made of several; `template` is the Jinja text that
    makes it of them. `model` is the one that the requests of an OpenAI batch name.
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
    model: str | None = None

    @property
    def text(self) -> str | None:
        """The column of the prompt, of the messages or of the turns; None where a template writes it."""
        named = [name for name in (self.prompt, self.messages, self.turns) if name is not None]
        if len(named) + (self.template is not None) != 1:
            raise ValueError("columns without exactly one prompt, messages or turns column, or a template")
        return named[0] if named else None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every column that the conversation is made of."""
        return self.reads or tuple(name for name in (self.text,) if name is not None)

    @property
    def brings_system(self) -> bool:
        """Whether a row can have a system message of its own, beside that of a system column."""
        return self.messages is not None or (self.turns is not None and self.shape is not None)

    @property
    def used(self) -> tuple[str, ...]:
        """Every column that is read, once each."""
        named = (*self.texts, self.system, self.id, self.sampling, self.tools, *self.keep)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain JSON values; later kinds only where there are any, as in plans of before."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "messages": self.messages,
            "system": self.system,
            "id": self.id,
            "keep": list(self.keep),
        }
        later = {
            "turns": self.turns,
            "sampling": self.sampling,
            "tools": self.tools,
            "shape": self.shape,
            "reads": list(self.reads) or None,
            "template": self.template,
            "model": self.model,
        }
        return values | {name: value for name, value in later.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Columns:
        """Return the columns that `to_dict` gave `data` for. Raises KeyError or TypeError."""
        return cls(**{**data, "keep": tuple(data["keep"]), "reads": tuple(data.get("reads", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a row starts: `line` counts from 1, `offset` is in bytes."""

    offset: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileScan:
    """What one pass found of one file: its selected rows, its bytes, and where every 1,000th row starts.

    Without checkpoints where the format has an index of its own.
    """

    rows: int
    size: int
    checkpoints: tuple[Checkpoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        points = [[checkpoint.offset, checkpoint.line] for checkpoint in self.checkpoints]
        return {"rows": self.rows, "size": self.size, "checkpoints": points}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileScan:
        """Return what `to_dict` gave `data` for. Raises KeyError, TypeError or ValueError."""
        points = tuple(Checkpoint(offset=offset, line=line) for offset, line in data["checkpoints"])
        return cls(rows=int(data["rows"]), size=int(data["size"]), checkpoints=points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one pass over the input found; all that `read_rows` needs.

    `rows` is the number of selected rows, `size` that of the input's bytes. `checkpoints` hold
    the start of every 1,000th row where the format has no index of its own. An input of several files
    has both for each of them, in `files`, and no checkpoints beside.
    """

    rows: int
    size: int
    columns: Columns
    kept: tuple[KeptColumn, ...]
    checkpoints: tuple[Checkpoint, ...]
    duplicates: DuplicateIndex = field(compare=False)
    files: tuple[FileScan, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the occurrences as plain JSON values."""
        values = {
            "rows": self.rows,
            "size": self.size,
            "columns": self.columns.to_dict(),
            "kept": [{"name": column.name, "type": column.type} for column in self.kept],
            "checkpoints": [[checkpoint.offset, checkpoint.line] for checkpoint in self.checkpoints],
        }
        return {**values, "files": [file.to_dict() for file in self.files]} if self.files else values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], duplicates: DuplicateIndex) -> Scan:
        """Return the scan that `to_dict` gave `data` for.

        Raises:
            IntegrityError: `data` is nothing that `to_dict` gives.
        """
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


class Source(Protocol):
    """The input, of one file or several. For one thread at a time."""

    @property
    def shown(self) -> str:
        """The input, as the user named it."""

    def locate(self, row: Row) -> str:
        """Return where `row` stands, as file:line."""

    def detect(self, selection: Selection) -> Columns:
        """Return the columns that a scan will settle on, from no more of the file than it takes.

        Raises:
            UsageError: The selection does not fit the columns that there are.
            InputRefused: The file has faults before its columns are known.
        """

    def peek(self, count: int) -> list[dict[str, Any]]:
        """Return the first `count` records with all their columns, to guess from what the columns are.

        Raises:
            UsageError: The file cannot be read.
            InputRefused: One of them has faults.
        """

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass of bounded memory, and return what it found.

        `scratch` is a directory for temporary files: 16 bytes per row where there are over
        500,000 of them. They are gone, or unlinked, on return. `on_progress` gets the number of
        rows so far. With a limit, what lies behind it is neither read nor checked.

        Raises:
            UsageError: The selection does not fit the columns that there are.
            InputRefused: The file or its rows have faults.
        """

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded), from near the first of them.

        A range that starts where the last one ended goes on there.

        Raises:
            IntegrityError: The file is not the one that was scanned.
        """
