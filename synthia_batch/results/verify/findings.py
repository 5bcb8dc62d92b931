"""Damage found in a run directory, its place and its remedy."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import IntegrityError


class FindingKind(StrEnum):
    """Kinds of damage, by remedy."""

    PART = "part"
    """A published file is damaged, missing or foreign. Its samples can be regenerated."""
    JOURNAL = "journal"
    """Frames of a journal are damaged. Their samples can be regenerated."""
    LEDGER = "ledger"
    """Frames of the ledger of parts are damaged."""
    MANIFEST = "manifest"
    """The manifest or the card does not match the directory. Both can be rewritten."""
    LEFTOVER = "leftover"
    """An unneeded file left by a crash."""
    UNKNOWN = "unknown"
    """A file among the dataset's that no run wrote. The user must move it."""
    RECORD = "record"
    """A damaged record beside the plan that can be rewritten without loss."""
    OWNER = "owner"
    """The record of the last epoch is damaged. Other files name their epochs."""
    CANARY = "canary"
    """The expected canary answers are damaged, and samples exist that depend on them."""
    LINK = "link"
    """A stage of a pipeline is not made of what the stage before it has now. The pipeline can be run anew."""
    LOST = "lost"
    """The directory of a stage that was complete is not there. The pipeline makes it anew."""
    PLAN = "plan"
    """The plan is damaged. Nothing else can be checked without it."""


REMEDIES = {
    FindingKind.PART: "`verify --repair` drops it, and the next run regenerates its samples",
    FindingKind.JOURNAL: "`verify --repair` drops these frames, and the next run regenerates their samples",
    FindingKind.LEDGER: "`verify --repair` drops these frames, and parts that no other record lists",
    FindingKind.MANIFEST: "`verify --repair` removes it, and the next run rewrites it",
    FindingKind.LEFTOVER: "`verify --repair` removes it",
    FindingKind.UNKNOWN: "move it out of the run directory",
    FindingKind.RECORD: "`verify --repair` removes it, and it is rewritten when needed",
    FindingKind.OWNER: "`verify --repair` rewrites it",
    FindingKind.CANARY: (
        "restore it from a copy; or remove it, if you know that the engines are the same as at the start "
        "of the run: their next answers then become the expected ones"
    ),
    FindingKind.LINK: "run the pipeline again: it makes the stage anew, beside this one",
    FindingKind.LOST: "restore it from a copy, or run the pipeline again: it makes the stage anew",
    FindingKind.PLAN: (
        "restore it from a copy; or let `verify --repair` remove it, and run the original job on the same "
        "input to rewrite it: the run resumes only if the plan is the same"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One piece of damage. `file` is relative to the run directory, `offset` in bytes.

    `shard` is the number of the affected shard, None if it affects no single one.
    """

    kind: FindingKind
    file: str
    what: str
    offset: int | None = None
    shard: int | None = None

    def __str__(self) -> str:
        position = self.file if self.offset is None else f"{self.file}: byte {self.offset}"
        return f"{position}: {self.what}: {REMEDIES[self.kind]}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "remedy": REMEDIES[self.kind]}


def explain_error(
    kind: FindingKind, file: Path, root: Path, exc: IntegrityError, shard: int | None = None
) -> Finding:
    """Return the finding for an error about `file`."""
    name = file.relative_to(root).as_posix()
    what = exc.reason or str(exc).splitlines()[0].removeprefix(str(file)).lstrip(": ")
    return Finding(kind=kind, file=name, what=what, offset=exc.offset, shard=shard)
