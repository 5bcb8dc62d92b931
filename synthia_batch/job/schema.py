"""What a user may say about a job: the shape of a job file, of `--set` keys and of the Python API.

Everything is optional but the input. What is left unsaid is filled, in this order, from the
preset, the model's generation_config and the defaults below; see `layers`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from synthia_batch.job.fields import STORE_URL, HomePath, InputPath, Number, Section, StoreUrl, Whole
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.structured import Structured
from synthia_batch.job.units import ClockTime, Count, Duration, FailureLimit, TokenLength

Determinism = Literal["strict", "fast"]
EngineKind = Literal["vllm", "openai", "scripted"]
PoolKind = Literal["ray", "local"]
PromptFormat = Literal["auto", "chat", "synthia", "synthia-card"]
OnOverflow = Literal["fail", "truncate-oldest", "stop"]
InputFormat = Literal["auto", "plain", "openai-batch", "sharegpt", "alpaca"]
DEMO_MODEL = "demo"
"""The name of the embedded model."""
FlagName = Literal["repetition", "empty", "refusal", "language", "duplicate"]


class Input(Section):
    """Where the rows come from, and which of them."""

    path: InputPath
    """A file, directory, pattern (`*.jsonl.gz`), address (`s3://`, `gs://`, `https://`, `hf://`) or `-` for
    stdin, or a list of them. JSONL, Parquet, CSV or a JSON list, packed or not. In a job file, relative to
    the job file."""
    format: InputFormat = "auto"
    """The shape of the records: `openai-batch`, `sharegpt`, `alpaca`, or `plain` for none of them. `auto`
    finds it by the columns."""
    prompt_template: HomePath | None = None
    """A Jinja file that writes each prompt from the columns of its row. In a job file, relative to it."""
    prompt_column: str | None = None
    """Default: the first of prompt, question, instruction, input, text that there is."""
    messages_column: str | None = None
    """A column of conversations in OpenAI's shape. Default: `messages`, where there is one."""
    turns_column: str | None = None
    """A column of lists of the user's messages, which are played turn by turn. Default: `turns`, where
    there is one and no `messages`."""
    system_column: str | None = None
    """Takes each row's system message from this column, instead of `system`. Where it is blank, a
    conversation keeps its own, and a prompt has none."""
    id_column: str | None = None
    """Default: a hash of the row's content and an occurrence number."""
    keep_columns: tuple[str, ...] = ()
    """Input columns to carry into the output."""
    sampling_column: str | None = None
    """Takes what a row says of its own sampling from this column: an object with keys of `sampling`, or
    `seed`. What it leaves out, or is null, is the job's."""
    tools_column: str | None = None
    """Takes the tools that a row's prompt tells of from this column: a list of definitions in OpenAI's
    shape, for the chat template."""
    limit: Annotated[Count, Field(ge=1)] | None = None
    """Take the first `limit` rows only."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All that is named, in order."""
        return (self.path,) if isinstance(self.path, str) else self.path


class Model(Section):
    """What answers."""

    name: str = "demo"
    """A directory, a GGUF file, a name on the Hugging Face Hub (REPOSITORY:QUANTIZATION for a GGUF file
    there), or `demo` for the embedded model. In a job file, a path is relative to the job file."""
    revision: str | None = None
    """A branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Let code that the model's repository brings run on this machine."""
    dtype: str = "auto"
    """The type that weights are computed in, such as bfloat16. `auto` is the model's own."""
    quantization: str | None = None
    """How vLLM is to quantize, or read quantized weights. Default: what the checkpoint says."""
    max_model_len: Annotated[TokenLength, Field(ge=16)] | None = None
    """Tokens of prompt and answer together. Default: what the model was trained for."""


class Lora(Section):
    """Adapters that are laid over the model's weights, in peft's format."""

    adapters: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], HomePath] = Field(default_factory=dict)
    """Directories by name. In a job file, relative to the job file."""
    column: str | None = None
    """Takes each row's adapter, by name, from this column; where that is blank, the model answers as it
    is. Without a column every row takes the one adapter."""


class Engine(Section):
    """What makes text from token ids. Any further key is a setting of that engine.

    vllm: the fields of vLLM's EngineArgs. openai: `engine.openai_settings.EndpointSettings`. scripted:
    `engine.scripted_engine.ScriptedOptions`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    kind: EngineKind = "vllm"
    """`vllm`; `openai`, a server that speaks OpenAI's API; or `scripted` for rehearsals without weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is what the installed build of vLLM is for."""

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's own settings, by name."""
        return dict(self.__pydantic_extra__ or {})


class Pool(Section):
    """Where the engines live."""

    kind: PoolKind = "ray"
    """`ray`, or `local` for one engine in the driver's own process."""
    workers: Annotated[Whole, Field(ge=1)] | None = None
    """Engines. Default: one per GPU group, or one per CPU core where there is no GPU."""
    tensor_parallel_size: Annotated[Whole, Field(ge=1)] = 1
    """GPUs that share an engine's layers."""
    pipeline_parallel_size: Annotated[Whole, Field(ge=1)] = 1
    """GPUs, or machines, that take turns of an engine's layers."""
    ray_address: str | None = None
    """A running Ray cluster. Default: a Ray of the job's own, gone when the job is."""
    watchdog_seconds: Annotated[Number, Field(gt=0)] = 300.0
    """An engine that has work and makes no step for this long is hung, and is killed."""
    load_timeout_seconds: Annotated[Number, Field(gt=0)] = 3600.0
    """A worker that has room and has not loaded its engine after this long is hung, too. An hour is
    140 GB, a 70B model, at 40 MB/s: a slow network disc, or a download on a node that lacks it."""


class Store(Section):
    """How an object store is written to, where `output` names one."""

    state: HomePath | None = None
    """The directory on this machine in which the run goes on. Default: outputs/NAME-FINGERPRINT."""
    lease: Annotated[Duration, Field(ge=1, le=3600)] = 60.0
    """A machine that was lost may be replaced after this long."""
    request_timeout: Annotated[Duration, Field(gt=0, le=3600)] = 120.0
    """A request that is not answered after this long is sent again."""
    patience: Annotated[Duration, Field(ge=0, allow_inf_nan=False)] = 300.0
    """A store that does not answer is waited for this long when a run begins and when it ends. In between,
    the engines go on."""


class Job(Section):
    """One job. `Job(input={"path": "questions.parquet"})` is the smallest."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run directory. Default: the input's file name without its suffix."""
    input: Input
    """Where the rows come from."""
    model: Model = Model()
    """What answers."""
    lora: Lora = Lora()
    """Adapters over the model's weights."""
    preset: str | None = None
    """Default: the one that knows the model by its name, or `chat`."""
    system: tuple[str, ...] = ("synthia",)
    """NAME of the library, @FILE or TEXT; each row is made once per system message."""
    prompt_format: PromptFormat = "auto"
    """`chat` is the model's own template, `synthia` the cards' SYSTEM:/USER:/ASSISTANT: format,
    `synthia-card` the same with the spaces of the cards' Python loop. `auto` is the preset's."""
    chat_template: HomePath | None = None
    """A Jinja file to write prompts by, instead of the model's own template. In a job file, relative
    to the job file."""
    num_samples: Annotated[Whole, Field(ge=1)] = 1
    """Samples per row and system message."""
    on_overflow: OnOverflow = "fail"
    """What becomes of a conversation with a later turn whose prompt leaves no room for an answer: it fails,
    stops with the answers that it has, or goes on without its oldest turns in the prompt. Those are left
    out as soon as there is no room for max_tokens, or half of max_model_len where that is less."""
    flags: tuple[FlagName, ...] = ()
    """What to look for in answers: repetition, empty, refusal, language, duplicate. The column `flags` says
    which were found. Default: none, and no column."""
    drop_flagged: bool = False
    """Set samples with a flag aside, in failed/, with a code such as flagged_repetition."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    structured: Structured = Structured()
    """What every answer must be."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Every sample's own seed is derived from it."""
    determinism: Determinism = "strict"
    """`strict`: a sample's tokens do not depend on what else is made. `fast` gives that up for speed."""
    engine: Engine = Engine()
    """What makes text, and its settings."""
    pool: Pool = Pool()
    """Where the engines live."""
    output: StoreUrl | HomePath | None = None
    """The run directory, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. Default: outputs/NAME-FINGERPRINT."""
    store: Store = Store()
    """How an object store is written to."""
    max_failures: FailureLimit | None = None
    """More failed samples than this, a number or a share such as 1%, end the job with exit code 3.
    Default: no limit."""
    deadline: Annotated[Duration, Field(gt=0, allow_inf_nan=False)] | None = None
    """Drain after this long, such as 7h30m, to be resumed later."""
    stop_at: ClockTime | None = None
    """Drain by this time of day, such as 07:00, local time, when it comes next."""
    metrics_port: Annotated[Whole, Field(ge=1, le=65535)] | None = None
    """Serve metrics for Prometheus on this port while the job runs."""
    notify: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """Where to tell that the job has ended: Apprise URLs, in which ${NAME} is an environment variable."""
    report: bool = True
    """Write report.html once the run is complete."""

    @field_validator("output", mode="before")
    @classmethod
    def _refuse_other_urls(cls, value: Any) -> Any:
        is_url = isinstance(value, str) and "://" in value
        # A Path has lost one of the slashes, and would be a directory called s3:.
        is_lost = isinstance(value, Path) and str(value).startswith(("s3:/", "gs:/"))
        if is_lost or (is_url and re.match(STORE_URL, value) is None):
            raise ValueError("Input should be a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
        return value

    @field_validator("system", "notify", "flags", mode="before")
    @classmethod
    def _accept_one_text(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
