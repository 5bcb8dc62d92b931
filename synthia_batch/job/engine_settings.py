"""Declared settings of each kind of engine: further keys of a job's section `engine`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from synthia_batch.job.fields import HomePath
from synthia_batch.job.markers import Flag, Outward, never

Api = Literal["chat", "completions"]
MAX_WORDS = 24


class VllmSettings(BaseModel):
    """The settings of vLLM with a flag of their own, or that are not part of the identity.

    Never instantiated: vLLM's own EngineArgs has the types and defaults.
    """

    max_num_seqs: Annotated[int, never("the batch size: no effect in strict, may have one in fast")]
    max_num_batched_tokens: Annotated[int, never("likewise")]
    gpu_memory_utilization: Annotated[float, never("memory: less of it fixes running out of memory")]
    kv_cache_memory_bytes: Annotated[int, never("memory")]
    cpu_offload_gb: Annotated[float, never("memory")]
    max_parallel_loading_workers: Annotated[int, never("how weights are loaded, not which")]
    use_tqdm_on_load: Annotated[bool, never("display")]
    disable_log_stats: Annotated[bool, never("display")]
    hf_token: Annotated[str, Outward(), never("who downloads the model, not which")]
    reasoning_parser: Annotated[
        str,
        Flag("Answers", "vLLM's parser of the model's reasoning: deepseek_r1, ...", metavar="NAME"),
    ]
    tool_call_parser: Annotated[
        str,
        Flag("Answers", "vLLM's parser of the model's tool calls: hermes, ...", metavar="NAME"),
    ]


class EndpointSettings(BaseModel):
    """The settings of an endpoint: `--set engine.concurrency=64`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base_url: Annotated[
        str,
        Outward(),
        Flag("Engines", "Of --engine openai: http://127.0.0.1:8000/v1", metavar="URL", order=2),
        never("endpoint: where the server is, not which model it serves"),
    ]
    """The server's address, as its clients use it: http://127.0.0.1:8000/v1."""
    api: Api | None = None
    """`chat`: the server gets messages and writes the prompt. `completions`: it gets the prompt that the
    job's format writes. Default: chat, or completions if the job specifies how prompts are written."""
    api_key: Annotated[str | None, Outward(), never("endpoint: who sends the requests")] = None
    """`${NAME}`, an environment variable. Default: OPENAI_API_KEY; a server without a key needs none."""
    concurrency: Annotated[int, Field(ge=1, le=4096), never("endpoint: as max_num_seqs")] = 32
    """Requests in flight, per worker."""
    timeout_seconds: Annotated[float, Field(gt=0), never("endpoint: a time limit")] = 600.0
    """How long one answer may take."""
    patience_seconds: Annotated[float, Field(ge=0), never("endpoint: a time limit")] = 900.0
    """How long a server may be away, or busy, before its worker ends."""
    extra_sampling: bool = False
    """Send top_k, min_p, repetition_penalty and all other sampling as well, under vLLM's names."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, such as reasoning_effort, sent unchanged."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The server's name for the limit of an answer: OpenAI's newest models expect the second."""


class ScriptedOptions(BaseModel):
    """The settings of the scripted engine: `--set engine.latency_ms=20`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    latency_ms: Annotated[float, Field(ge=0), never("scripted engine: speed")] = 0.0
    """From a request's start to its end."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 64
    """Requests that run at the same time."""
    max_words: Annotated[int, Field(ge=1, le=256)] = MAX_WORDS
    """The longest answer; every length from one word up is equally frequent."""
    call_log: Annotated[HomePath | None, Outward(), never("scripted engine: a log file")] = None
    """Gets one line per generation, the sample's ordinal, written as the generation ends. Later turns of
    a conversation are ORDINAL.TURN, counted from 0."""
    fail_every: Annotated[int, Field(ge=1)] | None = None
    """Fails each sample whose ordinal is a multiple of this, with the code `scripted_failure`."""
    fail_while_missing: Annotated[
        HomePath | None, never("scripted engine: a cause of failures that can be removed")
    ] = None
    """`fail_every` stops once this file exists: a cause of failures that can be fixed."""
    crash_on: Annotated[str | None, never("scripted engine: a rehearsed fault")] = None
    """Ends the engine's whole process, like a segmentation fault, at a prompt with this text."""
    hang_on: Annotated[str | None, never("scripted engine: a rehearsed fault")] = None
    """Never returns from a step that runs a prompt with this text."""
    oom_above: Annotated[Annotated[int, Field(ge=1)] | None, never("scripted engine: a rehearsed fault")] = (
        None
    )
    """Runs out of memory once more requests than this run at the same time."""
    shows_batch_above: Annotated[
        Annotated[int, Field(ge=1)] | None, never("scripted engine: a rehearsed fault")
    ] = None
    """Once more requests than this run at the same time, their number changes the text: an engine
    without batch invariance. 1 is caught by the canary at the start, 50 only by `verify --rerun`."""
    load_seconds: Annotated[float, Field(ge=0), never("scripted engine: speed")] = 0.0
    """How long loading takes."""
    hang_load_once: Annotated[HomePath | None, Outward(), never("scripted engine: a rehearsed fault")] = None
    """Never returns from loading while this file is missing; it is created first, so the next load works."""


ENGINE_SETTINGS = (VllmSettings, EndpointSettings, ScriptedOptions)
