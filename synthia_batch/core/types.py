"""The values that travel along the way of a sample. Imports nothing of the package."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of a job's input, normalized and on this machine.

    `path` is the file to read: the user's own, or a normalized copy of it, in the format `kind`.
    `shown` is the file as the user named it, for messages; `name` is its name in the output. `digest`
    identifies its content in the job's identity, None where that is the digest of `path`.
    """

    path: Path
    kind: str
    shown: Path | str
    name: str
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in OpenAI's shape."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What an answer must be. `kind` is `json_schema`, `regex`, `choice` or `grammar`.

    `text` is the schema or the list of the choices as JSON, else the expression or the grammar itself.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSampling:
    """What a row says of how its tokens are drawn; the job says the rest.

    `values` are by the names of the job's `sampling`, checked as those are. `seed` takes the place of
    the one that is derived for the row's first sample, `structure` that of the job's.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    structure: Structure | None = None

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that an answer may have, where the row says it."""
        limit: int | None = self.values.get("max_tokens")
        return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input record.

    `index` counts the selected rows from 0. `id` is unique within the input. `messages` ends
    with a message from the user; it starts with the row's own system message where there is one.
    `follow_ups` are the user's later questions, asked one by one as those before are answered.
    `system` is the text of the system column, if the job names one, `sampling` what the sampling column
    says: None where there is no such column. `tools` are definitions in OpenAI's shape. `line` is the line
    of a JSONL file or the row of a Parquet file, counted from 1; `file` counts the files of the input from 0.
    """

    index: int
    id: str
    messages: tuple[Message, ...]
    system: str | None
    kept: Mapping[str, Any]
    line: int
    follow_ups: tuple[str, ...] = ()
    sampling: RowSampling | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    file: int = 0


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

    `messages` is the conversation that the model answers first, with the system message that
    applies; the row's follow-ups come after it. `seed` has 63 bits.
    """

    ordinal: int
    row: Row
    system: str
    messages: tuple[Message, ...]
    index: int
    seed: int

    def join(self, answers: Sequence[str]) -> tuple[Message, ...]:
        """Return the conversation up to the question that comes after `answers`: fewer than questions."""
        turns = zip(answers, self.row.follow_ups, strict=False)
        later = (
            turn for said, asked in turns for turn in (Message("assistant", said), Message("user", asked))
        )
        return (*self.messages, *later)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an engine needs to make one sample. `token_ids` is the whole rendered prompt.

    `messages` is the conversation that it renders, for engines that write prompts themselves; empty for
    others. `max_tokens` replaces the job's limit. A negative ordinal marks a canary, not a sample. `turn`
    counts the turns of a conversation from 0. `adapter` names the LoRA adapter that makes it.
    `wants_logprob` asks for the answer's, of engines that have one that can be relied on. `sampling`
    has, by the names of the job's, what this request has otherwise; max_tokens has a field of its own.
    `structure` takes the place of the job's.
    """

    ordinal: int
    token_ids: Sequence[int]
    seed: int
    max_tokens: int | None = None
    adapter: str | None = None
    turn: int = 0
    wants_logprob: bool = False
    sampling: Mapping[str, Any] | None = None
    structure: Structure | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """The log-probabilities of an answer's tokens, flat: `width` entries for each token of it.

    The first of a token's entries is the token itself, the others are the likeliest of its place, the
    likeliest first. `ids` and `tokens`, its text by itself, say which token an entry is of. `values` are
    natural logarithms, of 32 bits.
    """

    width: int
    ids: "array[int]"
    tokens: tuple[str, ...]
    values: "array[float]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A sample that was made. `response` excludes the reasoning and the stop string.

    As an engine gives it, it is the answer to one request, and `turn` is that request's. As a
    sample, it is the whole of a conversation: `response` is the last answer, `earlier` are those
    before it, and the tokens are the sums over all turns.

    `logprob` is the natural logarithm of the answer's probability, where it was asked for: for a
    comparison, never written with a sample. `logprobs` are of its tokens, where the job asks for them;
    of a conversation those of the last answer. `flags` are given as its shard is published; a journal
    knows none.
    """

    ordinal: int
    response: str
    reasoning: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    earlier: tuple[str, ...] = ()
    turn: int = 0
    logprob: float | None = None
    logprobs: Logprobs | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A sample that could not be made. `code` is stable; `message` is for people.

    Neither may depend on time, host or worker: failed/ is part of the output's bytes. `earlier` are
    the answers of a conversation that failed later.
    """

    ordinal: int
    code: str
    message: str
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A finished turn of a conversation that goes on: its sample ends with its last turn only.

    `number` counts from 0. The tokens are those of this turn.
    """

    ordinal: int
    number: int
    response: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


Outcome = Finished | Failed
Record = Outcome | Turn
