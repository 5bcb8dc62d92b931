"""The stages of a pipeline, in order: `pipeline.json` in its directory, for whoever reads them later."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage, and the one that it reads. `directory` is its run's name in `stages/`, None if not begun.

    `declared` is the digest of what the pipeline's file says of it. `is_made`: its run was complete once.
    """

    name: str
    reads: str | None
    declared: str = ""
    directory: str | None = None
    is_made: bool = False


class StageList:
    """The stages of the pipeline in `directory`, which the file there has at any time.

    A stage that is declared otherwise than before, or has another run, is to be begun with all behind it.
    """

    def __init__(self, directory: Path, stages: Sequence[StageRecord]) -> None:
        self._directory = directory
        before = read_stages(directory) or []
        pairs = zip(before, stages, strict=False)
        known = [*takewhile(lambda pair: replace(pair[0], directory=None, is_made=False) == pair[1], pairs)]
        self._records = [*(record for record, _ in known), *stages[len(known) :]]
        if self._records != before:
            self._write()

    def note_run(self, number: int, directory: str) -> None:
        """Note the run of the stage `number`, counted from 0. One that is lost begins again."""
        before = self._records[number]
        is_lost = before.is_made and find_stage_run(self._directory, before) is None
        if before.directory != directory or is_lost:
            later = [replace(one, directory=None, is_made=False) for one in self._records[number + 1 :]]
            changed = replace(before, directory=directory, is_made=False)
            self._records = [*self._records[:number], changed, *later]
            self._write()

    def note_made(self, number: int) -> None:
        """Note that the run of the stage `number` is complete: its directory is missed from now on."""
        if not self._records[number].is_made:
            self._records[number] = replace(self._records[number], is_made=True)
            self._write()

    def _write(self) -> None:
        listed = encode_checksummed({"stages": [asdict(stage) for stage in self._records]})
        publish_bytes(RunDir(self._directory).pipeline, listed)


def read_stages(directory: Path) -> list[StageRecord] | None:
    """Return the stages of the pipeline in `directory`, None if it has none.

    Raises:
        IntegrityError: The file was altered.
    """
    path = RunDir(directory).pipeline
    value = read_checksummed(path) if path.exists() else None
    return None if value is None else [StageRecord(**stage) for stage in value["stages"]]


def find_stage_run(directory: Path, stage: StageRecord) -> Path | None:
    """Return the run of a stage of the pipeline in `directory`, None if it has not begun or is not there."""
    run = RunDir(RunDir(directory).stages / (stage.directory or ""))
    return run.root if run.plan.exists() or run.manifest.exists() else None
