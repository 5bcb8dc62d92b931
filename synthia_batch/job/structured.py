"""The structure of every answer: a JSON Schema, a regular expression, a choice of texts, or a grammar."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from synthia_batch.core.types import Structure
from synthia_batch.job.fields import HomePath, Section
from synthia_batch.job.markers import Flag, always

Choices = tuple[Annotated[str, Field(min_length=1)], ...]


class Structured(Section):
    """The structure of every answer. At most one of them."""

    json_schema: Annotated[
        HomePath | None,
        Flag("Answers", "Every answer is JSON of this schema.", metavar="FILE", takes=Path),
        always("structured", "its text, not its path; only if answers have a structure"),
    ] = None
    """A file with a JSON Schema. In a job file, relative to the job file."""
    regex: Annotated[
        str | None,
        Flag("Answers", "Every answer matches it whole.", metavar="TEXT"),
        always("structured", "likewise"),
    ] = None
    """A regular expression that the whole answer matches."""
    choice: Annotated[
        Choices,
        Flag(
            "Answers", "Every answer is one of these. Repeatable.",
            metavar="A,B,...", takes=list, parts="names",
        ),
        always("structured", "likewise"),
    ] = ()  # fmt: skip
    """The allowed answers."""
    grammar: Annotated[
        HomePath | None,
        Flag("Answers", "Every answer is of this grammar, GBNF or Lark.", metavar="FILE", takes=Path),
        always("structured", "its text, not its path"),
    ] = None
    """A file with a grammar, in llama.cpp's EBNF (GBNF) or in Lark's syntax. In a job file, relative to the
    job file."""

    @field_validator("choice", mode="before")
    @classmethod
    def _accept_one_text(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _refuse_several(self) -> Self:
        _name_one(self)
        return self

    @property
    def kind(self) -> str | None:
        """The one that is set, or None."""
        return _name_one(self)


class RowStructured(Section):
    """The same in a row: texts instead of files, and a schema as an object or as JSON text."""

    json_schema: dict[str, Any] | bool | str | None = None
    regex: str | None = None
    choice: Choices = ()
    grammar: str | None = None

    @model_validator(mode="after")
    def _name_exactly_one(self) -> Self:
        if _name_one(self) is None:
            raise ValueError("name one of json_schema, regex, choice and grammar")
        return self

    def to_structure(self) -> Structure:
        """Return the value that is kept with a row.

        Raises:
            ValueError: The schema is text that is not JSON.
        """
        kind = _name_one(self) or ""
        value = getattr(self, kind)
        if kind == "json_schema" and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as exc:
                raise ValueError(f"json_schema: is a string, and no JSON: {exc}") from exc
        return make_structure(kind, value)


def make_structure(kind: str, value: Any) -> Structure:
    """Return the structure of a kind; `value` is a schema as JSON, choices as a list, or else a text.

    A schema's keys keep their order, since answers have them in that order.
    """
    is_json = kind in ("json_schema", "choice")
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if is_json else str(value)
    return Structure(kind=kind, text=text)


def _name_one(section: Structured | RowStructured) -> str | None:
    named = [name for name in type(section).model_fields if getattr(section, name) not in (None, ())]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are set; an answer can have only one structure")
    return named[0] if named else None
