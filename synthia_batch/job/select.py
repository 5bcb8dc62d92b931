"""Which samples of a complete run are kept: the section `select`."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from synthia_batch.job.fields import ADDRESS, HomePath, Section, Whole
from synthia_batch.job.units import Count

NOT_SELECTED, EXPRESSION_FAILED = "not_selected", "expression_failed"
"""The codes of samples that a selection does not keep."""
NOT_ACCEPTED, ACCEPT_FAILED = "not_accepted", "accept_failed"
"""The codes of a sample none of whose answers `accept` accepts, and of one for which it has no value."""
Positive = Annotated[Count, Field(ge=1)]
NO_STEPS = "nothing is selected: set combine, where, best, dedup, decontaminate, limit or sample"
_NO_NAMES = ("id", "row", "self")
"""Names that mean something else in expressions."""


class Combined(Section):
    """One value of several samples: one of these keys, with an expression about each of them."""

    mean: str | None = None
    """The mean of the numbers."""
    median: str | None = None
    """Their median: of an even count, the mean of the two in the middle."""
    min: str | None = None
    """The lowest number."""
    max: str | None = None
    """The highest number."""
    majority: str | None = None
    """The most frequent value, text or any other; of equally frequent ones, the first."""
    all: str | None = None
    """Whether the expression is true of every one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.model_fields_set) != 1 or getattr(self, self.how) is None:
            raise ValueError(f"Input should have one of {', '.join(Combined.model_fields)}")
        return self

    @property
    def how(self) -> str:
        """The key that is set."""
        return next(iter(self.model_fields_set))

    @property
    def text(self) -> str:
        """The expression."""
        return str(getattr(self, self.how))


class Combine(Section):
    """Which samples become one. Every other key is the name of a value, which has a `Combined`."""

    model_config = ConfigDict(extra="allow")

    per: str | None = None
    """The earlier run whose samples get one each. Default: the rows of the run itself do."""
    __pydantic_extra__: dict[str, Combined] = Field(init=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.values:
            raise ValueError("Input should name a value, such as `score: {mean: judge.json.score}`")
        for name in self.values:
            if not name.isidentifier() or name in _NO_NAMES:
                raise ValueError(f"{name!r} can be no value's name: use letters, digits and _")
        return self

    @property
    def values(self) -> Mapping[str, Combined]:
        """The values by name."""
        return self.__pydantic_extra__


def _refuse_address(path: Path) -> Path:
    if ADDRESS.match(str(path).replace(":/", "://", 1)):
        raise ValueError("Input should be a file on this machine, not an address")
    return path


class Decontaminate(Section):
    """Which samples share words with a benchmark."""

    against: Annotated[HomePath, AfterValidator(_refuse_address)]
    """The benchmark: a file, directory or pattern in any format of an input."""
    column: str
    """Its column of texts."""
    on: str
    """What is compared with them."""
    ngram: Annotated[Whole, Field(ge=1, le=100)] = 13
    """How many words in a row must be equal. A text of fewer words must be equal as a whole."""


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

    combine: Combine | None = None
    """Makes one sample of several that say something of the same: `{per: STAGE, NAME: {mean: EXPRESSION}}`.
    The first one stays and has NAME as a column; later steps can name it."""
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
    decontaminate: Decontaminate | None = None
    """Drops samples that share a run of words with a benchmark:
    `{against: FILE, column: NAME, on: EXPRESSION, ngram: 13}`."""
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
        """Return the steps that are set, as JSON values for the identity, without the place of a file."""
        steps = self.model_dump(exclude_defaults=True, exclude={"decontaminate": {"against"}})
        if self.dedup is not None and self.dedup.near is None:
            steps["dedup"] = self.dedup.on
        return steps

    def spell_flags(self) -> list[str]:
        """Return the flags of the command that makes this selection, without the place of a file."""
        steps, flags = self.identify(), list[str]()
        if self.combine is not None:
            del steps["combine"]
            flags += [f"--combine={name}={one.how}:{one.text}" for name, one in self.combine.values.items()]
            flags += [f"--combine-per={self.combine.per}"] if self.combine.per is not None else []
        if self.dedup is not None:
            steps |= {"dedup": self.dedup.on} | ({"near": near} if (near := self.dedup.near) else {})
        if (benchmark := self.decontaminate) is not None:
            steps |= {"decontaminate": benchmark.on, "against": benchmark.against.name}
            steps |= {"column": benchmark.column, "ngram": benchmark.ngram}
        return [*flags, *(f"--{name}={value}" for name, value in steps.items())]


def suggest_step(key: str) -> str | None:
    """Return the name that the last part of an unknown dotted key of `select` may have meant."""
    known = [
        name for section in (Select, Combine, Combined, Dedup, Decontaminate) for name in section.model_fields
    ]
    return next(iter(difflib.get_close_matches(key.rpartition(".")[2], known, n=1)), None)
