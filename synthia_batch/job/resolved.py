"""The resolved job: the input of plan, engines and store."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from synthia_batch.core.types import InputFile, Structure
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.schema import TEMPLATE_DATE, Determinism, Job
from synthia_batch.job.sections import EngineKind, PoolKind

Device = Literal["cpu", "cuda"]
FormatName = Literal["chat", "synthia", "synthia-card", "plain"]

PREFIX_CUTS = 1
"""The version of the rule where prompts are cut for a prefix cache: scheduler/prompt_cuts.py."""
CPU_BLOCK_SIZE = 32
"""Tokens of a block of a CPU engine's KV cache if prompts are cut. vLLM's default, 128, shares less."""
UNKNOWN_LENGTH = 2**31 - 1
"""The maximum sequence length if only a server knows it: more than any model has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A located model. `name` goes into the output's model column.

    `path` is its directory on this machine; a worker on another node without that directory falls back
    on `repo_id` at `revision`. The scripted engine has neither. `gguf` is the weights file of a GGUF
    model; the directory then has only the other files.
    """

    name: str
    path: Path | None
    repo_id: str | None
    revision: str | None
    trust_remote_code: bool
    gguf: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """An adapter that requests may name. `digest` covers its config and weights."""

    name: str
    path: Path
    rank: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything that a worker needs to start its engine. `settings` are the engine's own, by name.

    `structure` applies to every answer whose request has none of its own. `uses_mla`: the model has
    multi-head latent attention. `weights_bytes` is None if unknown or not needed.
    """

    kind: EngineKind
    model: ModelRef
    device: Device
    dtype: str
    quantization: str | None
    max_model_len: int
    sampling: Sampling
    determinism: Determinism
    tensor_parallel_size: int
    pipeline_parallel_size: int
    settings: Mapping[str, Any]
    adapters: tuple[LoraAdapter, ...] = ()
    structure: Structure | None = None
    uses_mla: bool = False
    weights_bytes: int | None = None

    def loads_like(self, other: "EngineSpec") -> bool:
        """Whether an engine loaded for `other` can serve this: they differ in what is asked of it alone."""
        return replace(self, sampling=other.sampling, structure=other.structure) == other

    @property
    def is_elsewhere(self) -> bool:
        """Whether a server generates the text: its model, tokenizer and limits are not known here."""
        return self.kind == "openai"

    @property
    def takes_messages(self) -> bool:
        """Whether the engine itself writes the prompt from messages."""
        return self.is_elsewhere and self.settings.get("api") == "chat"

    @property
    def parses_reasoning(self) -> bool:
        """Whether the engine itself separates an answer's reasoning from its response."""
        return self.kind == "vllm" and bool(self.settings.get("reasoning_parser"))

    @property
    def parses_tool_calls(self) -> bool:
        """Whether the engine finds the tool calls in answers to rows with tools."""
        return self.kind == "vllm" and bool(self.settings.get("tool_call_parser"))

    @property
    def caches_prefixes(self) -> bool:
        """Whether the engine caches computed prompt prefixes: vLLM's default.

        In strict determinism not on GPUs: their kernels have not been shown to allow it.
        """
        is_off = self.settings.get("enable_prefix_caching") is False
        return self.kind == "vllm" and not is_off and (self.determinism == "fast" or self.device == "cpu")

    @property
    def cuts_prefixes(self) -> bool:
        """Whether the prefixes that it caches are cut where the prompts say: `Request.cuts`."""
        return self.caches_prefixes and self.determinism == "strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Where the engines run. `workers` is None if the pool counts the available devices."""

    kind: PoolKind
    workers: int | None
    ray_address: str | None
    watchdog_seconds: float
    load_timeout_seconds: float
    engines_per_gpu: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemText:
    """A system message by name. `text` is empty if there is none."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec:
    """Determines, together with the rows, the samples and their seeds.

    A row's own system message stays unless `replace_own_system`, which is also True if rows are prompts
    and have none. With `system_column`, `systems` holds one entry of that name and each row has the
    text; a row where it is blank keeps its own. `plays_turns`: rows are lists of questions, asked one
    after the other. `samples_per_file` is None for the default, which grows with the job.
    """

    systems: tuple[SystemText, ...]
    system_column: str | None
    replace_own_system: bool
    num_samples: int
    seed: int
    plays_turns: bool = False
    samples_per_file: int | None = None

    @property
    def samples_per_row(self) -> int:
        return len(self.systems) * self.num_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """The format of conversations. `tokenizer` is None for engines that read bytes.

    `kwargs` are arguments of the template, `day` (YYYY-MM-DD) is what it gets if it asks for today.
    """

    format: FormatName
    template: str | None
    special_tokens: Mapping[str, str]
    tokenizer: Path | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    day: str = TEMPLATE_DATE


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice:
    """The adapter of a row: the one named in the kept column `column`, or `name` for all, or none."""

    name: str | None
    column: str | None
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The output's location in an object store, and that store's time limits in seconds."""

    url: str
    lease_seconds: float
    request_seconds: float
    patience_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedJob:
    """A job with every value resolved, and its identity.

    `declared` has every value, `explicit` only those that the user set. `inputs` are the files to read,
    in order, and `prompt_template` is the text of the template for their rows. `columns` are the
    input's, from `Columns.to_dict`. `origins` has the origin of each dotted key's value.
    `tuning_place` is the model, hardware and engine that tuned settings are saved for. `preset` is None
    for an engine without a model, `quantization` the checkpoint's own. `output` is always a directory on
    this machine: the state directory if there is a `remote`.
    """

    name: str
    declared: Job
    explicit: Job
    inputs: tuple[InputFile, ...]
    prompt_template: str | None
    columns: Mapping[str, Any]
    output: Path
    preset: str | None
    quantization: str | None
    model: ModelRef
    plan: PlanSpec
    prompt: PromptSpec
    engine: EngineSpec
    adapter: AdapterChoice
    pool: PoolSpec
    identity: Mapping[str, Any]
    fingerprint: str
    origins: Mapping[str, str]
    tuning_place: Mapping[str, Any]
    remote: Remote | None = None

    @property
    def lacks_model(self) -> bool:
        """Whether the model's files are not here: such a job is only looked at."""
        return self.engine.kind == "vllm" and self.model.path is None

    @property
    def place(self) -> str:
        """The output's location, for display."""
        return str(self.output) if self.remote is None else self.remote.url
