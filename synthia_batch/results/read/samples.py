"""A finished sample as it is read back: a row of data/."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSample:
    """A row of data/. The last of `messages` is the answer; `kept` are columns of the input.

    Tokens are those that the engine counted, of a conversation the sums over its turns. `seed` has 63
    bits. `reasoning` is what the model thought before it answered, None where it marks nothing as that.
    `flags` are those that were found, of those that the job asked for. `logprobs` are as the column has
    them, None where there is none, or nobody asked for it.
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
    seed: int
    model: str
    flags: tuple[str, ...] = ()
    kept: Mapping[str, Any]
    logprobs: Sequence[Mapping[str, Any]] | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether max_tokens ended the answer."""
        return self.finish_reason == CUT_OFF
