"""Which samples of a complete run are kept: the section `select`."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from synthia_batch.job.fields import Section
from synthia_batch.job.units import Count

NOT_SELECTED, EXPRESSION_FAILED = "not_selected", "expression_failed"
"""The codes of samples that a selection does not keep."""
NOT_ACCEPTED, ACCEPT_FAILED = "not_accepted", "accept_failed"
"""The codes of a sample none of whose answers `accept` accepts, and of one for which it has no value."""
Positive = Annotated[Count, Field(ge=1)]


class Dedup(Section):
    """Which samples `dedup` takes for duplicates. The expression alone is the section with `on`."""

    on: str
    """What is compared."""
    near: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Near duplicates: texts of at least this similarity, from 0.5 to 1. Default: equal values."""


def _open_dedup(value: Any) -> Any:
    return {"on": value} if isinstance(value, str) else value


def identify_patterns(expressions: Iterable[str | None]) -> dict[str, str]:
    """Return what decides the meaning of patterns, if there are any in the expressions, for the identity."""
    return {"patterns": "re2"} if any("regex_search" in text for text in expressions if text) else {}


class Select(Section):
    """Steps that each drop samples, in the order of these fields. Expressions are Jinja's."""

    where: str | None = None
    """Keeps samples for which this expression is true."""
    best: str | None = None
    """Keeps of each row the samples with the highest values of this expression, a number."""
    per: str | None = None
    """The run whose rows `best` is about: the job's name, or a kept column with samples of an earlier run.
    Default: the earlier run if there is one, else the run itself."""
    top: Positive = 1
    """How many samples of each row `best` keeps. Of equal ones it keeps the earlier."""
    dedup: Annotated[Dedup, BeforeValidator(_open_dedup)] | None = None
    """Keeps of samples with equal values of this expression, or similar ones, the first one of the run."""
    limit: Positive | None = None
    """Keeps the first so many samples."""
    sample: Positive | None = None
    """Keeps so many samples, drawn by `seed` and their ids."""
    seed: int = 0
    """Decides what `sample` draws."""

    @model_validator(mode="after")
    def _check(self) -> "Select":
        for name, needed in (("top", "best"), ("per", "best"), ("seed", "sample")):
            if name in self.model_fields_set and getattr(self, needed) is None:
                raise ValueError(f"{name} belongs to {needed}, which is not set")
        return self

    def identify(self) -> dict[str, Any]:
        """Return the steps that are set, as JSON values for the identity."""
        steps = self.model_dump(exclude_defaults=True)
        if self.dedup is not None and self.dedup.near is None:
            steps["dedup"] = self.dedup.on
        return steps
