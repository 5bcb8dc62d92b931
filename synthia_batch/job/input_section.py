"""The section `input` of a job file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from synthia_batch.core.types import MAX_ROW_BYTES
from synthia_batch.job.fields import HomePath, InputPath, Section
from synthia_batch.job.markers import Flag, Outward, always, never
from synthia_batch.job.units import Count

InputFormat = Literal["auto", "plain", "openai-batch", "sharegpt", "alpaca", "ultrachat"]
BadRow = Literal["refuse", "fail"]
FinalAssistant = Literal["regenerate", "continue", "refuse"]


class Input(Section):
    """Where the rows come from, and which of them."""

    path: Annotated[
        InputPath,
        Outward(),
        always("input.digest", "the decompressed content of its files, in order; their paths do not count"),
    ]
    """A file, directory, pattern (`*.jsonl.gz`), address (`s3://`, `gs://`, `https://`, `hf://`) or `-` for
    stdin, or a list of them, compressed or not; docs/reference/inputs.md lists the formats. In a job file,
    relative to the job file."""
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

    @property
    def paths(self) -> tuple[str, ...]:
        """Every named path, in order."""
        return (self.path,) if isinstance(self.path, str) else self.path
