"""What a worker expects of an engine.

An engine's own settings, `engine.KEY`, read into its model of them.

Where an engine is put, and with what.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from synthia_batch.core.types import Outcome, Request
from synthia_batch.errors import SampleRefused, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine says of itself once it is loaded.

    `capacity` is the number of requests that keep it busy: its batch, and enough more that a
    finished one is replaced without a round trip. `device` is the hardware's own name. `numerics` is
    what else the last bits of a logit may depend on, by what a person calls it. `ends_with_process`: what
    it holds goes with its process, so that it need not be closed before that is killed.
    """

    engine: str
    version: str
    device: str
    capacity: int
    max_model_len: int
    numerics: Mapping[str, str] = field(default_factory=dict)
    ends_with_process: bool = False

    def describe(self) -> dict[str, str]:
        """Return all that may decide about a token, by what a person calls it."""
        return {"engine": f"{self.engine} {self.version}", "device": self.device, **self.numerics}


class Engine(Protocol):
    """A loaded model. Driven by one thread."""

    @property
    def facts(self) -> EngineFacts:
        """What the engine says of itself."""

    @property
    def cached_prompt_tokens(self) -> int:
        """Prompt tokens of ended requests that came from a prefix cache, since the start.

        They depend on what was asked before, so they are counted and never written with a sample.
        """

    def add(self, request: Request) -> None:
        """Queue one request.

        Raises:
            SampleRefused: The engine will not take this prompt. Any other error is the engine's
                own and ends its worker.
            EngineOutOfMemory: The batch is too large; also from `step` and from loading.
        """

    def step(self) -> Sequence[Outcome]:
        """Advance every running request and return those that ended. Blocks for one step."""

    def withdraw(self) -> Sequence[int]:
        """Forget the requests that no step has begun, and return their ordinals."""

    def abort(self) -> None:
        """Drop every request that has not ended. They yield no outcome."""

    def close(self) -> None:
        """Give back the device. The engine is not used afterwards."""


def check_prompt_length(request: Request, max_model_len: int) -> None:
    """Return if the prompt of `request` leaves room for at least one token of an answer.

    Raises:
        SampleRefused: It does not.
    """
    length = len(request.token_ids)
    if length >= max_model_len:
        message = f"the prompt has {length} tokens; max_model_len is {max_model_len}"
        raise SampleRefused("prompt_too_long", message)


Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], settings: Mapping[str, Any], whose: str) -> Model:
    """Return `settings` as `model` has them; `whose` they are is for a person.

    Raises:
        UsageError: One is unknown or has a value that does not fit. Names every such setting and, as a
            secret may stand in the wrong place, no value.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as exc:
        faults = "; ".join(f"engine.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in exc.errors())
        known = ", ".join(model.model_fields)
        raise UsageError(f"{whose} settings: {faults}; there are {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`core` is the CPU core to pin the engine's thread to, None to leave it free. `neighbours` is
    the number of engines on the machine, itself included: they share its memory. `halvings` counts
    how often the engine has run out of it: each asks for half the batch or half the KV cache.
    `spans_nodes` says that its GPUs are on several machines, each a bundle of the Ray placement
    group that its worker is in.
    """

    core: int | None = None
    neighbours: int = 1
    halvings: int = 0
    spans_nodes: bool = False
