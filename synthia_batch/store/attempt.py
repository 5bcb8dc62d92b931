"""Who writes: which plan, which epoch, since which start of the machine."""

from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux: a UUID drawn anew at every boot


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One opening of a run. Readers without the lock use epoch 0.

    `boot` tells a process that died from a machine that died: under one boot every byte that was
    written is still there, synced or not. None where the system does not say; then every earlier
    writer is taken to have lost what it had not synced.
    """

    plan_digest: str
    epoch: int
    boot: str | None


def read_boot_id() -> str | None:
    """Return what identifies this start of the machine, or None where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None
