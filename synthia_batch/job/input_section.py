"""The section `input` of a job file."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from synthia_batch.core.types import MAX_ROW_BYTES
from synthia_batch.job.fields import ADDRESS, NUMBERED_ROWS, HomePath, InputPath, Number, Section, Whole
from synthia_batch.job.markers import Flag, Outward, always, never
from synthia_batch.job.units import Count, parse_count

InputFormat = Literal["auto", "plain", "openai-batch", "sharegpt", "alpaca", "ultrachat"]
BadRow = Literal["refuse", "fail"]
FinalAssistant = Literal["regenerate", "continue", "refuse"]
GenerateRole = Literal["assistant", "user"]


class Sampler(Section):
    """A column of numbered rows, drawn from the job's seed: one of `choice`, `weights` and `file`."""

    choice: Annotated[
        Annotated[tuple[Any, ...], Field(min_length=1)] | None,
        always("input.digest", "the values that rows have"),
    ] = None
    """Values that are equally likely."""
    weights: Annotated[
        Annotated[dict[str, Annotated[Number, Field(gt=0)]], Field(min_length=1)] | None,
        always("input.digest", "likewise"),
    ] = None
    """Values and how likely each is, beside the others: `{easy: 3, hard: 1}`."""
    file: Annotated[HomePath | None, always("input.digest", "likewise: its records, not its path")] = None
    """A file of records in any format of an input. Each row has one: the value of `column`, that of the only
    column, or an object."""
    column: Annotated[str | None, always("input.digest", "likewise")] = None
    """The column of `file` to take values from. Default: all."""
    pick: Annotated[Annotated[Whole, Field(ge=1)], always("input.digest", "likewise")] = 1
    """How many records or entries a row has, none of them twice; more than one are a list."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = [name for name in ("choice", "weights", "file") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError("Input should have one of choice, weights and file")
        if self.column is not None and self.file is None:
            raise ValueError("Input should have a file, of which column is a column")
        known = self.choice or self.weights
        if known is not None and self.pick > len(known):
            raise ValueError(f"Input should have at least pick = {self.pick} values, and has {len(known)}")
        if self.file is not None and ADDRESS.match(str(self.file).replace(":/", "://", 1)):
            raise ValueError("Input should be a file on this machine, not an address")
        try:
            json.dumps(self.choice)
        except (TypeError, ValueError) as exc:
            raise ValueError(f"Input should be values that JSON has: {exc}") from exc
        return self


class Input(Section):
    """Where the rows come from, and which of them."""

    path: Annotated[
        InputPath,
        Outward(),
        always("input.digest", "the decompressed content of its files, in order; their paths do not count"),
    ]
    """A file, directory, pattern (`*.jsonl.gz`), address (`s3://`, `gs://`, `https://`, `hf://`) or `-` for
    stdin, or a list of them, compressed or not; docs/reference/inputs.md lists the formats. In a job file,
    relative to the job file. `rows://1000` is numbered rows, as `rows: 1000` is."""
    rows: Annotated[
        Annotated[Count, Field(ge=1)] | None,
        always("input.digest", "the rows' numbers are content"),
    ] = None
    """Instead of a path: so many rows, with a column `number` that counts from 0 and is their id, and those
    of `columns`."""
    columns: Annotated[
        dict[Annotated[str, Field(pattern=r".")], Sampler],
        always("input.digest", "drawn values are content, and kept"),
    ] = Field(default_factory=dict)
    """Columns of numbered rows by name, drawn from the job's seed. They are kept in the output."""
    format: Annotated[
        InputFormat,
        Flag("Input", "openai-batch, sharegpt, alpaca, ultrachat or plain. [found]", name="input-format"),
        always("input.columns", "as detected; only if records are not in this package's own shape"),
    ] = "auto"
    """The shape of the records: `openai-batch`, `sharegpt`, `alpaca`, `ultrachat`, or `plain` for none of
    them. `auto` detects it from the columns."""
    prompt_template: Annotated[
        HomePath | None,
        Flag("Input", "A Jinja file that writes each prompt from the row's columns.", takes=Path),
        always("input.columns", "its text, not its path; only if there is one"),
    ] = None
    """A Jinja file that writes each prompt from the columns of its row. In a job file, relative to it."""
    messages_template: Annotated[
        HomePath | None,
        Flag("Input", "A Jinja file that writes each conversation, as JSON.", takes=Path),
        always("input.columns", "its text, not its path; only if there is one"),
    ] = None
    """A Jinja file that writes each row's whole conversation from its columns: a JSON list of messages in
    OpenAI's shape, with values as `{{ topic | tojson }}`. In a job file, relative to it."""
    generate_role: Annotated[
        GenerateRole,
        always("input.columns", "what the prompt ends with; only if it is the user's turn"),
    ] = "assistant"
    """Whose message the model writes. `user`: the chat template up to an empty user message, after the system
    message if there is one, so that the model invents a question. No column is asked."""
    prompt_column: Annotated[
        str | None,
        Flag("Input", "[prompt, question, instruction, input or text]"),
        always("input.columns", "the columns as detected: setting a default explicitly changes nothing"),
    ] = None
    """Default: the first of prompt, question, instruction, input and text that exists."""
    messages_column: Annotated[
        str | None,
        Flag("Input", "Conversations in OpenAI's shape. [messages]"),
        always("input.columns", "likewise"),
    ] = None
    """A column of conversations in OpenAI's shape. Default: `messages`, if it exists."""
    turns_column: Annotated[
        str | None,
        Flag("Input", "Lists of user messages, played turn by turn. [turns]"),
        always("input.columns", "likewise"),
    ] = None
    """A column of lists of the user's messages, which are played turn by turn. Default: `turns`, if it
    exists and `messages` does not."""
    system_column: Annotated[
        str | None,
        Flag("Input", "Take each row's system message from here."),
        always("input.columns", "likewise"),
    ] = None
    """Takes each row's system message from this column, instead of `system`. Where it is blank, a
    conversation keeps its own, and a prompt has none."""
    id_column: Annotated[
        str | None,
        Flag("Input", "[a hash of the row's content]"),
        always("input.columns", "ids are in the output and in the seeds"),
    ] = None
    """Default: a hash of the row's content and an occurrence number."""
    keep_columns: Annotated[
        tuple[str, ...],
        Flag("Input", "Input columns for the output: a,b,c", parts="names"),
        always("input.columns", "they are in the output"),
    ] = ()
    """Input columns to carry into the output."""
    rename_columns: Annotated[
        dict[str, Annotated[str, Field(min_length=1)]],
        Flag(
            "Input", "Another name for a kept column. Repeatable.",
            name="rename-column", metavar="OLD=NEW", takes=list, parts="pairs",
        ),
        always("input.columns", "names in the output; only if there are any"),
    ] = Field(default_factory=dict)  # fmt: skip
    """Names of kept columns in the output, by their names in the input."""
    sampling_column: Annotated[
        str | None,
        Flag("Input", "Take a row's own sampling parameters from here."),
        always("input.columns", "rows' own parameters change their tokens; only if it is named"),
    ] = None
    """Takes a row's own sampling parameters from this column: an object with keys of `sampling`, or
    `seed`. A key that is missing or null has the job's value."""
    tools_column: Annotated[
        str | None,
        Flag("Input", "Take a row's tool definitions, for the chat template, from here."),
        always("input.columns", "tools are in the prompts; only if it is named"),
    ] = None
    """Takes a row's tools from this column: a list of definitions in OpenAI's shape, for the chat
    template."""
    final_assistant: Annotated[
        FinalAssistant,
        Flag("Input", "A conversation's last answer: regenerate, continue or refuse. [regenerate]"),
        always("input.columns", "the prompts; only if answers are continued"),
    ] = "regenerate"
    """What happens to an answer that ends a conversation: `regenerate` drops it and generates it anew,
    `continue` generates what follows it, `refuse` refuses the row."""
    on_bad_row: Annotated[
        BadRow,
        Flag("Input", "A row that cannot be asked: refuse the input, or fail the row. [refuse]"),
        always("input.columns", "which rows are in failed/; only if it is not the default"),
    ] = "refuse"
    """`refuse` refuses an input with faults and lists them, before anything starts. `fail` writes such rows
    to failed/, with the code `bad_row` and their line, and generates the others."""
    message_fields: Annotated[
        bool | None,
        always("input.columns", "a column of the output; only if there is one"),
    ] = None
    """Whether the output has a column `messages_json`, with every field of the messages, such as tool calls.
    Default: whether messages of the first 1,000 rows have fields beside role and content."""
    limit: Annotated[
        Annotated[Count, Field(ge=1)] | None,
        Flag("Input", "Take the first rows only, such as 200 or 1.5M.", metavar="COUNT"),
        always("input.limit", "which rows there are"),
    ] = None
    """Take the first `limit` rows only."""
    max_row_bytes: Annotated[
        Annotated[Count, Field(ge=1)],
        Flag("Input", "Refuse rows of more bytes, such as 200M. [64 MiB]", metavar="BYTES"),
        always("input.columns", "which rows fail; only with on_bad_row fail, and if it is not the default"),
    ] = MAX_ROW_BYTES
    """Refuse rows of more bytes, in every format, or fail them as other bad rows. A row this long mostly
    shows another format, or lost line ends."""

    digest: Annotated[
        Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None,
        Flag("Input", "Refuse the input unless it has this digest.", name="input-digest", metavar="HEX"),
        never("it is compared with the digest of the content, which counts"),
    ] = None
    """The digest that the input must have, as `plan` shows it: BLAKE3 of the decompressed content of a single
    file of JSONL or Parquet. Another input is refused before anything else."""

    @model_validator(mode="before")
    @classmethod
    def _name_rows(cls, values: Any) -> Any:
        """Return `values` with the path that stands for numbered rows."""
        if not isinstance(values, dict) or values.get("rows") is None:
            return values
        try:
            path = f"{NUMBERED_ROWS}{parse_count(values['rows'])}"
        except ValueError:  # A fault of `rows`.
            path = f"{NUMBERED_ROWS}1"
        if values.get("path") not in (None, path):
            raise ValueError("Input should have a path or rows, not both; leave one out")
        return {**values, "path": path}

    @model_serializer(mode="wrap")
    def _leave_path_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the values without the path that `rows` stands for, so that other rows can be set."""
        values: dict[str, Any] = serialize(self)
        if self.rows is not None:
            values.pop("path", None)
        return values

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.columns and not self.is_numbered:
            raise ValueError("Input should have rows, for which columns are drawn, and has a path")
        if "number" in self.columns:
            raise ValueError("Input should have no drawn column `number`, which is the row's")
        return self

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that the output has of the input, as they are named there."""
        return (*self.keep_columns, *self.columns)

    @property
    def is_numbered(self) -> bool:
        """Whether its rows are numbers."""
        return len(self.paths) == 1 and self.paths[0].startswith(NUMBERED_ROWS)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every named path, in order."""
        if self.rows is not None:
            return (f"{NUMBERED_ROWS}{self.rows}",)
        return (self.path,) if isinstance(self.path, str) else self.path
