"""What a row may say of its own sampling: the keys of the job's, and a seed."""

import difflib
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from synthia_batch.core.types import RowSampling
from synthia_batch.job.sampling import REFUSED, Sampling
from synthia_batch.job.section import Whole
from synthia_batch.job.structured import RowStructured


class RowKeys(Sampling):
    """The keys of `sampling`, and a seed. Those that a row does not have are the job's."""

    seed: Annotated[Whole, Field(ge=0, lt=2**63)] | None = None
    """The seed of the row's first sample; of the others' it is the root."""
    structured: RowStructured | None = None
    """What the row's answers must be."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if "logprobs" in self.model_fields_set:
            raise ValueError("logprobs: the column is there for every row or for none; say --logprobs K")
        if {"min_tokens", "max_tokens"} <= self.model_fields_set and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if self.structured is not None and (self.min_tokens or self.ignore_eos):
            raise ValueError("structured: it says where an answer ends; leave out min_tokens and ignore_eos")
        return self

    def to_row(self) -> RowSampling:
        """Return what was said as the value that goes with a row."""
        said = {name: getattr(self, name) for name in Sampling.model_fields if name in self.model_fields_set}
        structure = self.structured.to_structure() if self.structured is not None else None
        return RowSampling(values=said, seed=self.seed, structure=structure)


def explain_row_fault(exc: ValidationError) -> str:
    """Return what is wrong with the keys or values of a row, in words, on one line."""
    return "; ".join(
        _explain(fault["loc"], fault["type"], fault["msg"], fault["input"]) for fault in exc.errors()
    )


def _explain(place: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    key = ".".join(map(str, place))
    what = message.removeprefix("Value error, ")
    if kind != "extra_forbidden":
        shown = repr(value)
        return f"{key}: {what}, got {shown if len(shown) <= 80 else shown[:77] + '...'}" if key else what
    name = str(place[-1])
    if name in REFUSED:
        return f"{key}: a row cannot say it: {REFUSED[name]}"
    near = difflib.get_close_matches(name, RowKeys.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"a row may have {', '.join(RowKeys.model_fields)}"
    return f"{name!r} is no key of sampling; {hint}"
