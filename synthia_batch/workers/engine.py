"""The contract of engines, and what they share: placement, settings, the limit of prompt length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from synthia_batch.core.errors import SampleRefused, UsageError
from synthia_batch.core.types import Outcome, Request
from synthia_batch.job.resolved import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How much less memory than by default an engine is started with.

    `batch_halvings` counts how often it has run out of memory while generating, `load_failures` while
    loading. `max_num_seqs` is the batch that it had before, None if it has never loaded.
    """

    batch_halvings: int = 0
    load_failures: int = 0
    max_num_seqs: int | None = None

    @property
    def total(self) -> int:
        """How often the engine has run out of memory."""
        return self.batch_halvings + self.load_failures


NO_REDUCTION = Reduction()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an engine runs and how much memory it may use.

    `core` is the CPU core to pin the engine's thread to, None for no pinning. `neighbours` is the number
    of engines on the machine, itself included: they share its memory. `spans_nodes`: its GPUs are on
    several machines, each a bundle of its worker's Ray placement group. `user_threads` is the user's own
    OMP_NUM_THREADS, None if not set. `engines_per_gpu` engines share its GPU.
    """

    core: int | None = None
    neighbours: int = 1
    reduction: Reduction = NO_REDUCTION
    spans_nodes: bool = False
    user_threads: str | None = None
    engines_per_gpu: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Properties of a loaded engine.

    `capacity` is the number of requests that keep it busy: its batch, plus enough to replace a finished
    request without a round trip. `device` is the name of the hardware. `numerics` lists, by readable names,
    everything else that may affect the last bits of a logit. `ends_with_process`: ending the process frees
    all its resources, so it need not be closed first. `max_num_seqs` is its largest batch, 0 if unknown.
    """

    engine: str
    version: str
    device: str
    capacity: int
    max_model_len: int
    numerics: Mapping[str, str] = field(default_factory=dict)
    ends_with_process: bool = False
    max_num_seqs: int = 0

    def describe(self) -> dict[str, str]:
        """Return everything that may affect which token is chosen, by readable names."""
        return {"engine": f"{self.engine} {self.version}", "device": self.device, **self.numerics}


class Engine(Protocol):
    """A loaded model. Driven by one thread."""

    @property
    def facts(self) -> EngineFacts:
        """The engine's properties."""

    @property
    def cached_prompt_tokens(self) -> int:
        """Prompt tokens of ended requests that a prefix cache served, since the start.

        They depend on previous requests, so they are only counted, never written with a sample.
        """

    def add(self, request: Request) -> None:
        """Queue one request.

        Raises:
            SampleRefused: The engine does not accept this prompt. Any other error ends the worker.
            EngineOutOfMemory: The batch is too large; also raised by `step` and by loading.
        """

    def step(self) -> Sequence[Outcome]:
        """Advance every running request and return those that ended. Blocks for one step."""

    def withdraw(self) -> Sequence[int]:
        """Drop the requests that no step has started, and return their ordinals."""

    def abort(self) -> None:
        """Drop all unfinished requests. They yield no outcome."""

    def adopt(self, spec: EngineSpec) -> None:
        """Answer from now on as `spec` says, which loads like the engine's own. There are no requests.

        Raises:
            UsageError: The engine does not accept it.
        """

    def close(self) -> None:
        """Free the device. The engine is not used afterwards."""


def check_prompt_length(request: Request, max_model_len: int) -> None:
    """Check that the prompt of `request` leaves room for at least one generated token.

    Raises:
        SampleRefused: It does not.
    """
    length = len(request.token_ids)
    if length >= max_model_len:
        message = f"the prompt has {length} tokens; max_model_len is {max_model_len}"
        raise SampleRefused("prompt_too_long", message)


Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], settings: Mapping[str, Any], engine: str) -> Model:
    """Return the settings `engine.KEY` as `model`; `engine` names the engine in messages.

    Raises:
        UsageError: A setting is unknown or its value invalid. The message lists every such setting but no
            values, since a misplaced one may be a secret.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as exc:
        faults = "; ".join(f"engine.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in exc.errors())
        known = ", ".join(model.model_fields)
        raise UsageError(f"settings of {engine}: {faults}; the known settings are {known}") from None


def describe_refusal(error: Exception) -> str:
    """Return one line that says what an engine does not accept, without the values: one may be a secret."""
    if isinstance(error, ValidationError):
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        return "; ".join(f"{place}: {message}" if place else message for place, message in faults)
    return " ".join(str(error).split())
