"""A finished sample: a row of data/."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSample:
    """A row of data/. The last of `messages` is the answer; `kept` holds columns kept from the input.

    Token counts are the engine's; of a conversation, sums over its turns. `seed` has 63 bits. `reasoning` is
    None if the model's output marks none. `flags` are those found among the flags that the job requests.
    `logprobs` is the column's value, None if the run has none or they were not read. `messages_json` is
    None unless messages have fields beside role and content; `messages` has these in `extra`. `prefill` is
    the start of the answer that the row gave, before `response`, None unless answers are continued.
    `candidates` is how many answers were generated until this one was accepted, None if each is.
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
    messages_json: str | None = None
    prefill: str | None = None
    candidates: int | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether max_tokens ended the answer."""
        return self.finish_reason == CUT_OFF
