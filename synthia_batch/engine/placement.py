"""Where an engine is put, and with what."""

from dataclasses import dataclass


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
