"""A job with no maybes: what the plan, the engines and the store work from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synthia_batch.core.types import InputFile, Structure
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.schema import Determinism, Job
from synthia_batch.job.sections import EngineKind, PoolKind

Device = Literal["cpu", "cuda"]
FormatName = Literal["chat", "synthia", "synthia-card", "plain"]

UNKNOWN_LENGTH = 2**31 - 1
"""Stands for the tokens that a sequence may have where only a server knows: more than any has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model that is there. `name` goes into the output's model column.

    `path` is its directory on this machine; a worker on another node that has no such directory
    falls back on `repo_id` at `revision`. The scripted engine has neither. `gguf` is the file with
    the weights where the engine reads one: the directory then says the rest.
    """

    name: str
    path: Path | None
    repo_id: str | None
    revision: str | None
    trust_remote_code: bool
    gguf: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """An adapter that requests may name. `digest` is of its config and weights."""

    name: str
    path: Path
    rank: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """All that a worker needs to make its engine. `settings` are the engine's own, by name.

    `structure` is what an answer must be, unless its request says something else.
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

    @property
    def is_elsewhere(self) -> bool:
        """Whether a server makes the text: its model, tokenizer and limits are not known here."""
        return self.kind == "openai"

    @property
    def takes_messages(self) -> bool:
        """Whether the engine writes the prompt itself, from messages."""
        return self.is_elsewhere and self.settings.get("api") == "chat"

    @property
    def parses_reasoning(self) -> bool:
        """Whether the engine itself tells an answer's reasoning from its response."""
        return self.kind == "vllm" and bool(self.settings.get("reasoning_parser"))

    @property
    def caches_prefixes(self) -> bool:
        """Whether the engine keeps what it computed of a prompt's beginning for the next: vLLM's default."""
        is_off = self.settings.get("enable_prefix_caching") is False
        return self.kind == "vllm" and self.determinism == "fast" and not is_off


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Where the engines live. `workers` is None where the pool counts what there is."""

    kind: PoolKind
    workers: int | None
    ray_address: str | None
    watchdog_seconds: float
    load_timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemText:
    """A system message by name. `text` is empty where there is none."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec:
    """What decides, with the rows, which samples there are and their seeds.

    A row's own system message stays in place unless `replace_own_system`, which is True as well
    where rows are prompts and have none. With `system_column`, `systems` holds one entry of that
    name and the text comes from each row; a row where it is blank keeps its own. `plays_turns`:
    rows are lists of questions, asked one after the other.
    """

    systems: tuple[SystemText, ...]
    system_column: str | None
    replace_own_system: bool
    num_samples: int
    seed: int
    plays_turns: bool = False

    @property
    def samples_per_row(self) -> int:
        """Samples made of each row."""
        return len(self.systems) * self.num_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """How conversations are written. `tokenizer` is None for engines that read bytes."""

    format: FormatName
    template: str | None
    special_tokens: Mapping[str, str]
    tokenizer: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice:
    """Which adapter makes a row: the one that `column`, a kept one, names, or `name` for all, or none."""

    name: str | None
    column: str | None
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """Where in an object store the output goes, and how long that store is waited for, in seconds."""

    url: str
    lease_seconds: float
    request_seconds: float
    patience_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedJob:
    """A job with every value found, and the identity that those values make.

    `declared` has every value filled, `said` those only that the user said: no preset's and none
    of the model's. `inputs` are the files to read, in order, and `prompt_template` the text that writes
    prompts of their rows. `columns` are the input's, as `Columns.to_dict` of the source gives them.
    `origins` tells for each dotted key of the job file where its value came from. `tuning_place`
    is the model, hardware and engine that tuned settings are remembered for. `preset` is None
    where there is no model for it to know, `quantization` what the checkpoint says of its weights.
    `output` is a directory on this machine in any case: the state directory where there is a `remote`.
    """

    name: str
    declared: Job
    said: Job
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
    def place(self) -> str:
        """Where the output is, as it is named to people."""
        return str(self.output) if self.remote is None else self.remote.url
