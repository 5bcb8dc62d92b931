"""What every answer must be: JSON of a schema, a regular expression's, one of some texts, or a grammar's."""

import json
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from synthia_batch.core.types import Structure
from synthia_batch.job.fields import HomePath, Section

Choices = tuple[Annotated[str, Field(min_length=1)], ...]


class Structured(Section):
    """What every answer must be. At most one of them."""

    json_schema: HomePath | None = None
    """A file with a JSON Schema. In a job file, relative to the job file."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: Choices = ()
    """The answers that there may be."""
    grammar: HomePath | None = None
    """A file with a grammar, in EBNF as llama.cpp has it (GBNF), or in Lark's syntax. In a job file,
    relative to the job file."""

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
        """The one that was said; None where none was."""
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
        """Return what was said as the value that goes with a row.

        Raises:
            ValueError: The schema is text, and that is no JSON.
        """
        kind = _name_one(self) or ""
        said = getattr(self, kind)
        if kind == "json_schema" and isinstance(said, str):
            try:
                said = json.loads(said)
            except (ValueError, RecursionError) as exc:
                raise ValueError(f"json_schema: is a string, and no JSON: {exc}") from exc
        return make_structure(kind, said)


def make_structure(kind: str, said: Any) -> Structure:
    """Return the structure of a kind: the schema as a value, the choices as a list, else a text.

    A schema's keys stay in their order: answers have them in it.
    """
    is_json = kind in ("json_schema", "choice")
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")) if is_json else str(said)
    return Structure(kind=kind, text=text)


def _name_one(said: Structured | RowStructured) -> str | None:
    named = [name for name in type(said).model_fields if getattr(said, name) not in (None, ())]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are said; an answer can be made to fit one of them")
    return named[0] if named else None
