"""Which columns an input has and how they are used, from the first rows of all its files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.inputs.base import Columns, Selection
from synthia_batch.inputs.records.columns import resolve_columns, spell_name


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FirstNames:
    """The columns of the first rows of a file, each with the place of the first row that has it.

    `rows` were read; `is_whole`: these are all. `advice` is for a file that is no file of rows, as it seems.
    `needs_prompt`: the job must say what is asked; no column is taken by its name.
    """

    places: Mapping[str, str]
    rows: int
    is_whole: bool
    advice: str = ""
    needs_prompt: bool = False


class ColumnReader(Protocol):
    """One file of an input, as far as its columns are concerned."""

    empty_hint: str

    @property
    def shown(self) -> str:
        """The file, as the user named it."""

    def read_names(self, limit: int | None) -> FirstNames:
        """Return the columns of the first rows, at most `limit`."""

    def refine(self, columns: Columns) -> Columns:
        """Return `columns`, if they fit the file, with what only its values show."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """The columns of an input, and the place of the first row that has each of its columns.

    `resolved` are the columns before their refinement by values: those that the names alone lead to.
    `shown` is the first file with rows.
    """

    columns: Columns
    resolved: Columns
    places: Mapping[str, str]
    shown: str


def detect_columns(readers: Sequence[ColumnReader], selection: Selection) -> Detected:
    """Return the columns that the first rows of all files lead to; see `Source.detect`."""
    places: dict[str, str] = {}
    first: ColumnReader | None = None
    advice = ""
    left = selection.limit
    for reader in readers:
        names = reader.read_names(left)
        first = first or (reader if names.places else None)
        advice = advice or names.advice
        if names.needs_prompt and not selection.names_prompt:
            seen = ", ".join(f"{{{{ {spell_name(name)} }}}}" for name in names.places)
            raise UsageError(
                f"{reader.shown}: say what is asked of a run's samples: --prompt-template FILE sees {seen}; "
                "or name a column with --prompt-column or --messages-column"
            )
        places = {**names.places, **places}
        if left is not None:
            left -= names.rows
            if left <= 0 or not names.is_whole:
                break
    if first is None:
        raise refuse_empty(readers[0].shown, readers[0].empty_hint if len(readers) == 1 else "")
    try:
        resolved = resolve_columns(selection, tuple(places), first.shown)
    except UsageError as exc:
        raise UsageError(f"{exc}; {advice}" if advice else str(exc)) from exc
    return Detected(columns=first.refine(resolved), resolved=resolved, places=places, shown=first.shown)


def refuse_empty(place: Path | str, what: str) -> InputRefused:
    return InputRefused([f"{place}: there are no rows{what}"])
