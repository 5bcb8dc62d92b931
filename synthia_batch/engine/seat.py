"""Where on its machine an engine sits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """`core` is the CPU core to pin the engine's thread to, None to leave it free. `neighbours` is
    the number of engines on the machine, itself included: they share its memory.
    """

    core: int | None = None
    neighbours: int = 1
