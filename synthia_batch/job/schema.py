"""The declared job: the shape of a job file, of `--set` keys and of the Python API.

Only the input is required. Unset keys are filled, in this order, from the preset, the model's
generation_config and the defaults below; see `loading.merge`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, field_validator

from synthia_batch.core.errors import UsageError
from synthia_batch.job.accept_function import keep_function
from synthia_batch.job.fields import (
    LONGEST_NAME,
    STORE_URL,
    Day,
    HomePath,
    Section,
    StoreUrl,
    Whole,
    anchor_file_reference,
    check_names,
)
from synthia_batch.job.input_section import Input
from synthia_batch.job.markers import Anchored, Flag, Outward, always, never
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.sections import Engine, Lora, Model, Pool, Store
from synthia_batch.job.structured import Structured
from synthia_batch.job.units import ClockTime, Duration, FailureLimit

Determinism = Literal["strict", "fast"]
PromptFormat = Literal["auto", "chat", "synthia", "synthia-card"]
OnOverflow = Literal["fail", "truncate-oldest", "stop"]
MARK_LENGTH = 9
"""Of a run directory's name, after the job's: a hyphen and eight digits."""
TEMPLATE_DATE = "2024-07-26"
"""The default day of chat templates: the one that Llama 3's template writes if it has no clock."""
FlagName = Literal["repetition", "empty", "refusal", "language", "duplicate"]


class _ReportingFaults(type(Section)):  # type: ignore[misc]
    """Makes `Job(...)` report its faults as this package does. Layers are validated another way."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        """Return the job of these values.

        Raises:
            UsageError: A field is unknown or missing, or its value does not fit; names all of them.
        """
        try:
            return super().__call__(*args, **values)
        except ValidationError as exc:
            from synthia_batch.job.loading.errors import explain_call

            raise UsageError(explain_call(exc, values)) from exc


class Job(Section, metaclass=_ReportingFaults):
    """One job. `Job(input={"path": "questions.parquet"})` is the smallest."""

    name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME - MARK_LENGTH),
        never("it is in the output: a run keeps the name that it started with"),
    ] = None
    """Names the run directory. Default: the input's file name without its suffix."""
    input: Input
    """Where the rows come from."""
    model: Model = Model()
    """The model that answers."""
    lora: Lora = Lora()
    """Adapters over the model's weights."""
    preset: Annotated[
        str | None,
        Flag("Model", "A model card's recommendations; see `presets`. [the model's]"),
        never("its values count, under their own keys"),
    ] = None
    """Default: the one that lists the model's name, or `chat`."""
    system: Annotated[
        tuple[str, ...],
        Anchored(anchor_file_reference),
        Flag(
            "Prompts and samples", "System message. Repeatable. [the preset's, or none]",
            short="-s", metavar="NAME|@FILE|TEXT", takes=list,
        ),
        always("system", "names, texts and their order determine prompts, seeds and positions"),
    ] = ("none",)  # fmt: skip
    """NAME of the library, @FILE or TEXT; each row is answered once per system message. The default is the
    preset's for prompts, and none for conversations. One that is set replaces the rows' own, but `none`
    leaves them."""
    replace_system: Annotated[
        bool,
        Flag("Prompts and samples", "With -s none, remove the rows' own system messages.", takes=bool),
        always("replace_own_system", "whether rows keep their own"),
    ] = False
    """Replace the rows' own system messages even by `none`, or by the preset's."""
    prompt_format: Annotated[
        PromptFormat,
        always("prompt", "with the template's text and its special tokens: the text that the model reads"),
    ] = "auto"
    """`chat` is the model's own template, `synthia` the cards' SYSTEM:/USER:/ASSISTANT: format,
    `synthia-card` the same with the spaces of the cards' Python loop. `auto` is the preset's."""
    chat_template: Annotated[
        HomePath | None,
        Flag("Model", "A Jinja file to write prompts by, instead of the model's own.", takes=Path),
        always("prompt", "its text, not its path"),
    ] = None
    """A Jinja file to write prompts by, instead of the model's own template. In a job file, relative
    to the job file."""
    chat_template_kwargs: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Any],
        always("prompt", "what the template does with them is in the prompts; only if there are any"),
    ] = Field(default_factory=dict)
    """Arguments of the chat template by name, such as `enable_thinking: false`."""
    template_date: Annotated[
        Day, always("prompt", "templates may write the day; only if it is another than the default")
    ] = TEMPLATE_DATE
    """The day that a chat template gets if it asks for today: always the same one, so that a run that is
    resumed tomorrow has the same prompts."""
    num_samples: Annotated[
        Whole,
        Field(ge=1),
        Flag("Prompts and samples", "Per row and system message. [1]", short="-n", takes=int),
        always("num_samples", "which samples there are"),
    ] = 1
    """Samples per row and system message."""
    on_overflow: Annotated[
        OnOverflow,
        Flag(
            "Prompts and samples", "A later turn without room: fail, truncate-oldest or stop. [fail]", order=1
        ),
        always("on_overflow", "how a conversation that outgrows the context ends; only if turns are played"),
    ] = "fail"
    """How to treat a conversation with a later turn whose prompt leaves no room for an answer: it fails,
    stops with the answers that it has, or continues without its oldest turns in the prompt. Those are left
    out as soon as there is no room for max_tokens, or half of max_model_len if that is less."""
    accept: Annotated[
        str | None,
        WrapValidator(keep_function),
        Flag("Prompts and samples", "Ask again until an answer makes it true.", metavar="EXPRESSION"),
        always("accept", "which answers are kept, with `max_candidates`; only if it is set"),
    ] = None
    """Generates another answer for a sample, with the next seed, until this expression is true of one. It
    is Jinja's, about kept columns and `response`, `reasoning`, `finish_reason`, `completion_tokens` and
    `json`, the parsed response. The column `candidates` has how many answers it took. From Python it may be
    a function, too: see the page about Python."""
    max_candidates: Annotated[
        Whole,
        Field(ge=1, le=1000),
        Flag("Prompts and samples", "With --accept: answers before it fails. [8]", takes=int, metavar="N"),
        always("accept", "how many answers a sample may take"),
    ] = 8
    """So many answers are generated for a sample of which `accept` accepts none; then it fails."""
    flags: Annotated[
        tuple[FlagName, ...],
        Flag(
            "Prompts and samples", "Mark answers, in a column: repetition,empty,refusal,language,duplicate",
            name="flag", metavar="NAMES", parts="names",
        ),
        always("flags", "a column, and which samples are excluded; with the language detector's version. "
               "Only if there are any"),
    ] = ()  # fmt: skip
    """Problems to look for in answers: repetition, empty, refusal, language, duplicate. The column `flags`
    lists those found. Default: none, and no column."""
    drop_flagged: Annotated[
        bool,
        Flag("Prompts and samples", "Move marked samples to failed/.", takes=bool),
        always("flags", "which samples are in data/"),
    ] = False
    """Move samples with a flag to failed/, with a code such as flagged_repetition."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    structured: Structured = Structured()
    """The structure of every answer."""
    seed: Annotated[
        Whole,
        Field(ge=0, lt=2**63),
        Flag("Sampling", "[0]", takes=int),
        always("seed", "every sample's seed is derived from it"),
    ] = 0
    """Every sample's own seed is derived from it."""
    determinism: Annotated[
        Determinism,
        Flag("Sampling", "strict or fast. [strict]"),
        always("determinism", "the guarantee of the run"),
    ] = "strict"
    """`strict`: a sample's tokens do not depend on what else is generated. `fast` gives that up for speed."""
    engine: Engine = Engine()
    """The engine that generates text, and its settings."""
    pool: Pool = Pool()
    """Where the engines run."""
    output: Annotated[
        StoreUrl | HomePath | None,
        Outward(),
        Flag(
            "Job", "Run directory, s3:// or gs://BUCKET/PREFIX. [outputs/NAME-FINGERPRINT]",
            short="-o", metavar="DIR|URL",
        ),
        never("where the run is, in a directory or a store"),
    ] = None  # fmt: skip
    """The run directory, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. Default: outputs/NAME-FINGERPRINT."""
    samples_per_file: Annotated[
        Annotated[Whole, Field(ge=1, le=1_000_000)] | None,
        Flag("Job", "Samples in each output file. [1,000 to 4,000]", takes=int, metavar="N"),
        always("samples_per_file", "which samples share a file; only if it is set"),
    ] = None
    """Samples in each output file, in whole rows. Default: 1,000 rows, and up to 4,000 samples from a million
    rows on. The driver's memory grows with it: see `plan`."""
    store: Store = Store()
    """How an object store is written to."""
    max_failures: Annotated[
        FailureLimit | None,
        Flag(
            "The night", "More failed samples, 500 or 1%, end with exit code 3.", metavar="COUNT|SHARE"
        ),
        never("the exit code"),
    ] = None  # fmt: skip
    """More failed samples than this, a number or a share such as 1%, end the job with exit code 3.
    Default: no limit."""
    deadline: Annotated[
        Annotated[Duration, Field(gt=0, allow_inf_nan=False)] | None,
        Flag("The night", "Drain after this long, such as 7h30m.", metavar="DURATION"),
        never("when to stop for now"),
    ] = None
    """Drain after this long, such as 7h30m, to be resumed later."""
    stop_at: Annotated[
        ClockTime | None,
        Flag("The night", "Drain by this time of day, such as 07:00.", metavar="HH:MM"),
        never("likewise"),
    ] = None
    """Drain by this time of day, such as 07:00, local time, when it comes next."""
    metrics_port: Annotated[
        Annotated[Whole, Field(ge=1, le=65535)] | None,
        Flag("The night", "Serve metrics for Prometheus here.", takes=int),
        never("monitoring"),
    ] = None
    """Serve metrics for Prometheus on this port while the job runs."""
    notify: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None,
        Outward(),
        Flag(
            "The night",
            "Notify this Apprise URL of the end; '${NAME}' is an environment variable. Repeatable.",
            metavar="URL", takes=list,
        ),
        never("who is notified"),
    ] = None  # fmt: skip
    """Apprise URLs to notify when the job has ended; ${NAME} in one is an environment variable."""
    report: Annotated[bool, never("report.html is not part of the output")] = True
    """Write report.html once the run is complete."""

    @field_validator("output", mode="before")
    @classmethod
    def _refuse_other_urls(cls, value: Any) -> Any:
        is_url = isinstance(value, str) and "://" in value
        # A Path has lost one of the slashes, and would be a directory called s3:.
        is_lost = isinstance(value, Path) and str(value).startswith(("s3:/", "gs:/"))
        if is_lost or (is_url and re.match(STORE_URL, value) is None):
            raise ValueError("Input should be a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
        if isinstance(value, str | Path) and not is_url:
            check_names(str(value))
        return value

    @field_validator("system", "notify", "flags", mode="before")
    @classmethod
    def _accept_one_text(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
