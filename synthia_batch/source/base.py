"""The interface of a source, and the values that it takes and gives.

A source is read twice: `scan` goes through all of it once and refuses it if anything is wrong;
`read_rows` then gives any range of its rows, starting near that range and not at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synthia_batch.errors import IntegrityError
from synthia_batch.rows import KeptColumn, Row

if TYPE_CHECKING:  # numpy is behind it, which a command without input has no need to load.
    from synthia_batch.source.ids import Occurrences

CHECKPOINT_ROWS = 1000
"""Rows from one checkpoint to the next."""
PROGRESS_ROWS = 10_000
"""Rows from one call of `on_progress` to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the job asks of the input. Columns that are None are detected, or not used."""

    prompt_column: str | None = None
    messages_column: str | None = None
    turns_column: str | None = None
    system_column: str | None = None
    id_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    sampling_column: str | None = None
    tools_column: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column gives what. Exactly one of `prompt`, `messages` and `turns` is not None."""

    prompt: str | None
    messages: str | None
    system: str | None
    id: str | None
    keep: tuple[str, ...]
    turns: str | None = None
    sampling: str | None = None
    tools: str | None = None

    @property
    def text(self) -> str:
        """The column of the prompt, of the messages or of the turns."""
        named = [name for name in (self.prompt, self.messages, self.turns) if name is not None]
        if len(named) != 1:
            raise ValueError("columns without exactly one prompt, messages or turns column")
        return named[0]

    @property
    def used(self) -> tuple[str, ...]:
        """Every column that is read, once each."""
        named = (self.text, self.system, self.id, self.sampling, self.tools, *self.keep)
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
        later = {"turns": self.turns, "sampling": self.sampling, "tools": self.tools}
        return values | {kind: name for kind, name in later.items() if name is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a row starts: `line` counts from 1, `offset` is in bytes."""

    offset: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one pass over the input found; all that `read_rows` needs.

    `rows` is the number of selected rows, `size` that of the file's bytes. `checkpoints` hold
    the start of every 1,000th row where the format has no index of its own.
    """

    rows: int
    size: int
    columns: Columns
    kept: tuple[KeptColumn, ...]
    checkpoints: tuple[Checkpoint, ...]
    occurrences: Occurrences = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the occurrences as plain JSON values."""
        return {
            "rows": self.rows,
            "size": self.size,
            "columns": self.columns.to_dict(),
            "kept": [{"name": column.name, "type": column.type} for column in self.kept],
            "checkpoints": [[checkpoint.offset, checkpoint.line] for checkpoint in self.checkpoints],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], occurrences: Occurrences) -> Scan:
        """Return the scan that `to_dict` gave `data` for.

        Raises:
            IntegrityError: `data` is nothing that `to_dict` gives.
        """
        try:
            return cls(
                rows=int(data["rows"]),
                size=int(data["size"]),
                columns=Columns(**{**data["columns"], "keep": tuple(data["columns"]["keep"])}),
                kept=tuple(KeptColumn(**column) for column in data["kept"]),
                checkpoints=tuple(
                    Checkpoint(offset=offset, line=line) for offset, line in data["checkpoints"]
                ),
                occurrences=occurrences,
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(
                f"the plan's record of its input is damaged ({exc!r}); "
                "restore the run directory, or start a new one"
            ) from exc


class Source(Protocol):
    """One input file. For one thread at a time."""

    @property
    def path(self) -> Path:
        """The file, as the user named it."""

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
