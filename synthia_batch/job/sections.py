"""Sections of a job file: model, adapters, engine, pool and store."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from synthia_batch.job.fields import HomePath, Number, Section, Whole, anchor_path
from synthia_batch.job.markers import Anchored, Flag, Outward, always, never, strict
from synthia_batch.job.units import Duration, TokenLength

EngineKind = Literal["vllm", "openai", "scripted"]
PoolKind = Literal["ray", "local"]
DEMO_MODEL = "demo"
"""The name of the embedded model."""


def _anchor_model(name: str, folder: Path) -> str:
    """Return the absolute path of the directory or file `name` in `folder`, or else `name` unchanged.

    A name such as `./mine` can only be a path; `org/mine` may be one on the Hub.
    """
    if name == DEMO_MODEL:
        return name
    anchored = anchor_path(name, folder)
    is_path = name in (".", "..") or name.startswith(("./", "../"))
    return os.path.abspath(anchored) if is_path or os.path.exists(anchored) else name


class Model(Section):
    """The model that answers."""

    name: Annotated[
        str,
        Anchored(_anchor_model),
        Flag("Model", "Directory, .gguf file, Hub name or demo. [demo]", name="model", short="-m"),
        always("model.name", "it is in the output; also `model.weights` and `model.tokenizer`"),
    ] = DEMO_MODEL
    """A directory, a GGUF file, a name on the Hugging Face Hub (REPOSITORY:QUANTIZATION for a GGUF file
    there), or `demo` for the embedded model. In a job file, a path is relative to the job file."""
    revision: Annotated[
        str | None,
        Flag("Model", "Branch, tag or commit on the Hub."),
        always("model.revision", "the commit on the Hub"),
    ] = None
    """A branch, tag or commit on the Hub."""
    trust_remote_code: Annotated[
        bool, Outward(), always("model.trust_remote_code", "other code may compute the model")
    ] = False
    """Let code from the model's repository run on this machine."""
    dtype: Annotated[str, always("model.dtype", "rounding")] = "auto"
    """The type that weights are computed in, such as bfloat16. `auto` is the model's own."""
    quantization: Annotated[str | None, always("model.quantization", "rounding")] = None
    """How vLLM quantizes weights or reads quantized ones. Default: the checkpoint's own method."""
    max_model_len: Annotated[
        Annotated[TokenLength, Field(ge=16)] | None,
        always("model.max_model_len", "where an answer is cut off"),
    ] = None
    """Tokens of prompt and answer together. Default: the length the model was trained for."""


class Lora(Section):
    """Adapters that are laid over the model's weights, in peft's format."""

    adapters: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], HomePath],
        Flag(
            "Model", "A LoRA adapter's directory. Repeatable.",
            name="lora", metavar="NAME=PATH", takes=list, parts="pairs", order=1,
        ),
        always("lora", "names and contents, by digest; only if there are any"),
    ] = Field(default_factory=dict)  # fmt: skip
    """Directories by name. In a job file, relative to the job file."""
    column: Annotated[
        str | None,
        Flag("Model", "Take each row's adapter, by name, from here.", name="lora-column", order=1),
        always("lora", "which adapter answers which row"),
    ] = None
    """Takes each row's adapter, by name, from this column; where that is blank, the model answers without
    an adapter. Without a column every row takes the only adapter."""


class Engine(Section):
    """The engine that generates text from token ids. Any further key is a setting of that engine.

    vllm: the fields of vLLM's EngineArgs. openai and scripted: `EndpointSettings` and `ScriptedOptions`
    of `job.engine_settings`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    kind: Annotated[
        EngineKind,
        Flag("Engines", "vllm, openai (a server) or scripted. [vllm]", name="engine", order=2),
        always("engine.kind", "which engine generates the text"),
    ] = "vllm"
    """`vllm`; `openai`, a server that speaks OpenAI's API; or `scripted` for rehearsals without weights."""
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        strict("engine.hardware", "the hardware's name and a CPU's instruction sets: kernels depend on them"),
    ] = "auto"
    """`auto` is the device that the installed build of vLLM supports."""

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's own settings, by name."""
        return dict(self.__pydantic_extra__ or {})


class Pool(Section):
    """Where the engines run."""

    kind: Annotated[
        PoolKind,
        Flag("Engines", "ray or local. [ray]", name="pool", order=1),
        never("who starts the engines"),
    ] = "ray"
    """`ray`, or `local` for one engine in the driver's own process."""
    workers: Annotated[
        Annotated[Whole, Field(ge=1)] | None,
        Flag("Engines", "Engines. [one per GPU group, or per core]", takes=int),
        never("a sample does not depend on which worker generates it"),
    ] = None
    """Engines. Default: one per GPU group, or one per CPU core if there is no GPU."""
    tensor_parallel_size: Annotated[
        Whole,
        Field(ge=1),
        Flag("Engines", "GPUs that share an engine's layers. [1]", takes=int),
        strict("engine.tensor_parallel_size", "it splits sums"),
    ] = 1
    """GPUs that share an engine's layers."""
    pipeline_parallel_size: Annotated[
        Whole,
        Field(ge=1),
        Flag("Engines", "GPUs that take turns of an engine. [1]", takes=int),
        strict("engine.pipeline_parallel_size", "which kernels compute a layer"),
    ] = 1
    """GPUs, or machines, that each compute some of an engine's layers in turn."""
    ray_address: Annotated[
        str | None,
        Outward(),
        Flag("Engines", "A running Ray cluster. [a Ray of its own]"),
        never("where the engines are; their hardware counts"),
    ] = None
    """A running Ray cluster. Default: a Ray instance of the job's own, which ends with the job."""
    watchdog_seconds: Annotated[Number, Field(gt=0), never("a time limit")] = 300.0
    """An engine that has work but makes no step for this long is considered hung, and is killed."""
    load_timeout_seconds: Annotated[Number, Field(gt=0), never("a time limit")] = 3600.0
    """A worker that has room but has not loaded its engine after this long is considered hung, too. An hour
    is 140 GB, a 70B model, at 40 MB/s: a slow network disk, or a download on a node that lacks it."""


class Store(Section):
    """How an object store is written to, if `output` names one."""

    state: Annotated[
        HomePath | None,
        Flag("Job", "Local run directory of an output in a store. [outputs/NAME-FINGERPRINT]", takes=Path),
        never("where the run directory of an output in a store is"),
    ] = None
    """The run directory on this machine. Default: outputs/NAME-FINGERPRINT."""
    lease: Annotated[Duration, Field(ge=1, le=3600), never("how soon another machine may take over")] = 60.0
    """Another machine may take over after a lost one has been silent for this long."""
    request_timeout: Annotated[Duration, Field(gt=0, le=3600), never("how long to wait for a response")] = (
        120.0
    )
    """A request without a response after this long is sent again."""
    patience: Annotated[
        Duration, Field(ge=0, allow_inf_nan=False), never("how long to wait for the store")
    ] = 300.0
    """How long to wait, at the start and the end of a run, for a store that does not respond. In between,
    the engines continue."""
