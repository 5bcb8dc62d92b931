"""What `verify` finds in a run directory, and where."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from synthia_batch.errors import IntegrityError


class FindingKind(StrEnum):
    """What is wrong, by what can be done about it."""

    PART = "part"
    """A published file is damaged, missing or foreign: its samples can be made again."""
    JOURNAL = "journal"
    """Frames of a journal are damaged: their samples can be made again."""
    LEDGER = "ledger"
    """Frames of the ledger of parts are damaged."""
    MANIFEST = "manifest"
    """The manifest, or the card with it, does not say what is there: both can be written again."""
    LEFTOVER = "leftover"
    """A crash left a file that nobody needs."""
    UNKNOWN = "unknown"
    """A file that no run wrote lies among the dataset's. Whoever put it there must take it away."""
    RECORD = "record"
    """A record beside the plan is damaged that can be made again, and nothing is lost with it."""
    OWNER = "owner"
    """The record of the last epoch is damaged; everything that was written under an epoch names it."""
    CANARY = "canary"
    """What the engines must answer is damaged, and there are samples that only it could tell from others'."""
    PLAN = "plan"
    """What the run is, is damaged: nothing else can be judged without it."""


REMEDIES = {
    FindingKind.PART: "`verify --repair` drops it, and the next run makes its samples again",
    FindingKind.JOURNAL: "`verify --repair` drops these frames, and the next run makes their samples again",
    FindingKind.LEDGER: "`verify --repair` drops these frames, and parts that nothing else vouches for",
    FindingKind.MANIFEST: "`verify --repair` removes it, and the next run writes it again",
    FindingKind.LEFTOVER: "`verify --repair` removes it",
    FindingKind.UNKNOWN: "move it out of the run directory",
    FindingKind.RECORD: "`verify --repair` removes it, and it is made again when it is needed",
    FindingKind.OWNER: "`verify --repair` writes it again",
    FindingKind.CANARY: (
        "restore it from a copy; or remove it, if you know that the engines are those that the run began "
        "with: what they answer next is then what all must answer"
    ),
    FindingKind.PLAN: (
        "restore it from a copy; or `verify --repair` removes it, and the job, run as it was first said on "
        "the same input, writes it again: only if it comes out the same does the run go on"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. `file` is relative to the run directory, `offset` in bytes.

    `shard` is the number of the shard that it concerns, None where it concerns no single one.
    """

    kind: FindingKind
    file: str
    what: str
    offset: int | None = None
    shard: int | None = None

    def __str__(self) -> str:
        place = self.file if self.offset is None else f"{self.file}: byte {self.offset}"
        return f"{place}: {self.what}: {REMEDIES[self.kind]}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {**asdict(self), "remedy": REMEDIES[self.kind]}


def explain_error(
    kind: FindingKind, file: Path, root: Path, exc: IntegrityError, shard: int | None = None
) -> Finding:
    """Return the finding that an error about `file` comes to."""
    name = file.relative_to(root).as_posix()
    what = exc.reason or str(exc).splitlines()[0].removeprefix(str(file)).lstrip(": ")
    return Finding(kind=kind, file=name, what=what, offset=exc.offset, shard=shard)
