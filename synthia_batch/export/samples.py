"""The samples of a run as they are exported: rows of data/ and failed/."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.rows import Message
from synthia_batch.tally import CUT_OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSample:
    """A row of data/. The last of `messages` is the answer; `kept` are columns of the input.

    `logprobs` are as the column has them; None where there is none, or the format has no use for them.
    """

    id: str
    row_index: int
    sample_index: int
    system: str
    messages: tuple[Message, ...]
    response: str
    reasoning: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    kept: Mapping[str, Any]
    logprobs: Sequence[Mapping[str, Any]] | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether max_tokens ended the answer."""
        return self.finish_reason == CUT_OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedSample:
    """A row of failed/."""

    id: str
    row_index: int
    sample_index: int
    code: str
    message: str
    messages: tuple[Message, ...]
