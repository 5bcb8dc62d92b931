"""The values that every stage of the pipeline passes on: rows, samples, requests and outcomes."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # It imports the digests' library, which not every process needs.
    from synthia_batch.core.digest import FileStamp

MAX_ROW_BYTES = 64 * 1024 * 1024  # a longer row indicates another format, or lost line ends
ANY_ROW_BYTES = 2**62  # for rows that were checked before


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One input file in the form in which it is read: JSONL or Parquet on this machine.

    `path` is the file to read, in the format `kind`: the user's own or a normalized copy. `shown` is the
    user's name for it, for messages; `name` is its name in the output. `digest` represents its content in
    the job's identity; None means the digest of `path`, which is `content`, once known. `stamp` was read
    before the job was resolved: the file with another one may have other content. A row of over
    `max_row_bytes` is bad. `is_new_copy`: this process has made the copy, and drops it if rows are refused.
    """

    path: Path
    kind: str
    shown: Path | str
    name: str
    digest: str | None = None
    content: str | None = None
    stamp: "FileStamp | None" = None
    max_row_bytes: int = MAX_ROW_BYTES
    is_new_copy: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, as in OpenAI's API.

    `extra` are its other keys, for the chat template: tool_calls with their arguments as objects,
    tool_call_id, name, reasoning_content. None if there are none.
    """

    role: str
    content: str
    extra: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def is_open(self) -> bool:
        """Whether it is the user's message that the model writes."""
        return self.role == "user" and not self.content and self.extra is None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Message":
        extra = {key: value for key, value in values.items() if key not in ("role", "content")}
        return cls(values["role"], values["content"], extra or None)

    def to_dict(self) -> dict[str, Any]:
        """Return the message as an API and a chat template take it."""
        return {"role": self.role, "content": self.content, **(self.extra or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A constraint on an answer. `kind` is `json_schema`, `regex`, `choice` or `grammar`.

    `text` is the schema or the list of choices as JSON, or the regular expression or grammar itself.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSampling:
    """A row's own sampling options; the job's apply to the rest.

    `values` uses the keys of the job's `sampling` and is validated the same way. `seed` replaces the seed
    derived for the row's first sample, `structure` the job's, `logprobs` how many of the likeliest tokens are
    kept. `template_kwargs` are arguments of the chat template, over the job's. `tool_choice` is `auto`,
    `none`, `required`, or `named` for the one `tool`: the last two have answers of calls as JSON text.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    structure: Structure | None = None
    logprobs: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tool_choice: str = "auto"
    tool: str | None = None

    @property
    def max_tokens(self) -> int | None:
        """The row's own limit for an answer, in tokens, if set."""
        limit: int | None = self.values.get("max_tokens")
        return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input record.

    `index` counts the selected rows from 0. `id` is unique within the input. `messages` ends with a message
    of the user's or a tool's result, and starts with the row's own system message if it has one.
    `follow_ups` are the user's later questions, each asked once the one before has been answered. `system`
    and `sampling` come from the columns that the job names for them, None without such a column. `tools`
    are definitions in OpenAI's format. `fault` says why the row cannot be asked, if the job lets such rows
    fail; it has no messages then. `line` is the line of a JSONL file or the row of a Parquet file,
    counted from 1; `file` counts the input files from 0.
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
    fault: str | None = None
    file: int = 0

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """The row's own arguments of the chat template."""
        return self.sampling.template_kwargs if self.sampling is not None else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptColumn:
    """An input column that is copied to the output.

    `type` is `string`, `int64`, `double`, `bool` or `json` (any JSON value, stored as text), or `arrow:`
    followed by the base64 of a serialized Arrow schema. Its first field has the type. If that holds extension
    types, a second one has the type of their storage, from which values are built. `feature` is the datasets
    library's description of the column as JSON, such as the names of its classes.
    """

    name: str
    type: str
    feature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A fixed range of samples that becomes exactly one output file.

    `number` counts from 0 to `count` - 1. Rows `first_row` to `stop_row` (exclusive) give the sample
    ordinals `first` to `stop` (exclusive): a row is never split across shards.
    """

    number: int
    count: int
    first_row: int
    stop_row: int
    first: int
    stop: int

    @property
    def samples(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One output to generate: row x system message x sample index.

    `messages` is the conversation up to the first answer, including the system message that applies;
    the row's follow-ups come later. `seed` has 63 bits.
    """

    ordinal: int
    row: Row
    system: str
    messages: tuple[Message, ...]
    index: int
    seed: int

    @property
    def prefill(self) -> str:
        """The start of the answer that the row gives, empty if it gives none."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else ""

    def complete(self, answers: Sequence[str], answer: str) -> tuple[Message, ...]:
        """Return the whole conversation, with its last `answer` behind what the row gives of it."""
        asked = self.join(answers)
        if asked[-1].is_open:
            return (*asked[:-1], Message("user", answer))
        prefill = self.prefill
        return (*(asked[:-1] if prefill else asked), Message("assistant", prefill + answer))

    def join(self, answers: Sequence[str]) -> tuple[Message, ...]:
        """Return the conversation up to the question that follows the last of `answers`."""
        later: list[Message] = []
        for answer, question in zip(answers, self.row.follow_ups, strict=False):
            later += (Message("assistant", answer), Message("user", question))
        return (*self.messages, *later)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to an engine. `token_ids` is the whole rendered prompt.

    `messages` is the same conversation for engines that render prompts themselves, empty for others.
    `max_tokens`, `structure` and `logprobs` replace the job's; `sampling` overrides its other options by
    name. A negative ordinal marks a canary. `turn` counts the turns of a conversation from 0. `adapter` names
    the LoRA adapter. `template_kwargs` are the chat template's arguments: reasoning parsers read them too.
    `wants_logprob` requests the answer's log-probability, if the engine computes a reliable one. `tools` are
    those whose calls the engine finds in the answer. In strict determinism a prefix cache cuts the prompt
    after so many tokens as `cuts` says, ascending.
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
    logprobs: int | None = None
    messages: tuple[Message, ...] = ()
    template_kwargs: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """The log-probabilities of an answer's tokens, flattened: `width` entries per token.

    A token's first entry is the token itself; the others are the likeliest alternatives in its place,
    likeliest first. `ids` and `tokens` (its text on its own) identify an entry's token. `values` are
    natural logarithms in 32 bits.
    """

    width: int
    ids: "array[int]"
    tokens: tuple[str, ...]
    values: "array[float]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A finished sample. `response` excludes the reasoning and the stop string.

    From an engine it is the answer to one request, and `turn` is that request's. As a sample it is a
    whole conversation: `response` is the last answer, `earlier` are those before it, and token counts
    are sums over all turns.

    `logprob` is the natural logarithm of the answer's probability if the request asked for it: for
    comparison only, never written. `logprobs` are those of the last answer's tokens if the job asks for
    them. `called` is the last answer as a message with tool calls, if it has any. `candidates` counts the
    answers up to this one, the accepted; None if each is. `flags` are set on publication; journals have none.
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
    called: Message | None = None
    candidates: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A failed sample. `code` is stable; `message` is for people.

    Neither may depend on time, host or worker: failed/ is reproducible. `earlier` are the answers before it.
    """

    ordinal: int
    code: str
    message: str
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A finished turn of a conversation that continues; or, `is_candidate`, an answer that was not accepted.

    `number` counts from 0. The token counts are those of this turn.
    """

    ordinal: int
    number: int
    response: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    is_candidate: bool = False


Outcome = Finished | Failed
Record = Outcome | Turn
