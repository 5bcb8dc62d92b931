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

    `declared` is the digest of what the pipeline's file says of it.
    """

    name: str
    reads: str | None
    declared: str = ""
    directory: str | None = None


class StageList:
    """The stages of the pipeline in `directory`, which the file there has at any time.

    A stage that is declared otherwise than before, or has another run, is to be begun with all behind it.
    """

    def __init__(self, directory: Path, stages: Sequence[StageRecord]) -> None:
        self._path = RunDir(directory).pipeline
        before = read_stages(directory) or []
        pairs = zip(before, stages, strict=False)
        known = [*takewhile(lambda pair: replace(pair[0], directory=None) == pair[1], pairs)]
        self._records = [*(record for record, _ in known), *stages[len(known) :]]
        if self._records != before:
            self._write()

    def note_run(self, number: int, directory: str) -> None:
        """Note the run of the stage `number`, counted from 0."""
        if self._records[number].directory != directory:
            later = [replace(record, directory=None) for record in self._records[number + 1 :]]
            changed = replace(self._records[number], directory=directory)
            self._records = [*self._records[:number], changed, *later]
            self._write()

    def _write(self) -> None:
        publish_bytes(self._path, encode_checksummed({"stages": [asdict(stage) for stage in self._records]}))


def read_stages(directory: Path) -> list[StageRecord] | None:
    """Return the stages of the pipeline in `directory`, None if it has none.

    Raises:
        IntegrityError: The file was altered.
    """
    path = RunDir(directory).pipeline
    value = read_checksummed(path) if path.exists() else None
    return None if value is None else [StageRecord(**stage) for stage in value["stages"]]


def list_stage_runs(directory: Path) -> dict[str, Path | None] | None:
    """Return the runs of the pipeline in `directory` by the names of their stages; None if it has none.

    A stage that has not begun has None.
    """
    stages = read_stages(directory)
    if stages is None:
        return None
    return {stage.name: _find_run(RunDir(directory).stages, stage) for stage in stages}


def _find_run(runs: Path, stage: StageRecord) -> Path | None:
    run = RunDir(runs / (stage.directory or ""))
    return run.root if run.plan.exists() or run.manifest.exists() else None
