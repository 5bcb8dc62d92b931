"""The values that travel along the way of a sample. Imports nothing of the package."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in OpenAI's shape."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input record.

    `index` counts the selected rows from 0. `id` is unique within the input. `messages` ends
    with a message from the user; it starts with the row's own system message where there is one.
    `system` is the text of the system column, if the job names one. `line` is the line of a
    JSONL file or the row of a Parquet file, counted from 1.
    """

    index: int
    id: str
    messages: tuple[Message, ...]
    system: str | None
    kept: Mapping[str, Any]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptColumn:
    """An input column that is carried into the output.

    `type` is `string`, `int64`, `double`, `bool` or `json` (any JSON value, written as its
    text), or `arrow:` followed by the base64 of a serialized one-field Arrow schema.
    """

    name: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A fixed range of samples that becomes exactly one output file.

    `number` counts from 0 to `count` - 1. Rows `first_row` to `stop_row` (excluded) give the
    sample ordinals `first` to `stop` (excluded): a row is never split over shards.
    """

    number: int
    count: int
    first_row: int
    stop_row: int
    first: int
    stop: int

    @property
    def samples(self) -> int:
        """The number of samples in the shard."""
        return self.stop - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One output to make: row x system message x sample index.

    `messages` is the conversation that the model answers, with the system message that applies.
    `seed` has 63 bits.
    """

    ordinal: int
    row: Row
    system: str
    messages: tuple[Message, ...]
    index: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an engine needs to make one sample. `token_ids` is the whole rendered prompt.

    `max_tokens` replaces the job's limit. A negative ordinal marks a canary, not a sample. `adapter`
    names the LoRA adapter that makes it.
    """

    ordinal: int
    token_ids: Sequence[int]
    seed: int
    max_tokens: int | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A sample that was made. `response` excludes the reasoning and the stop string."""

    ordinal: int
    response: str
    reasoning: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A sample that could not be made. `code` is stable; `message` is for people.

    Neither may depend on time, host or worker: failed/ is part of the output's bytes.
    """

    ordinal: int
    code: str
    message: str


Outcome = Finished | Failed
