"""The stages of a pipeline, in order: `pipeline.json` in its directory, for whoever reads them later."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.storage.atomic import publish_bytes, remove_file
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

    A stage that is declared otherwise than before, or has another run, is to be begun with all that read it.
    A report of the pipeline as it was is removed.
    """

    def __init__(self, directory: Path, stages: Sequence[StageRecord]) -> None:
        self._directory = directory
        before = read_stages(directory) or []
        known = {record.name: record for record in before}
        changed = [stage.name for stage in stages if _forget(known.get(stage.name, stage)) != stage]
        changed += [stage.name for stage in stages if stage.name not in known]
        behind = _list_behind(stages, changed)
        self._records = [stage if stage.name in behind else known[stage.name] for stage in stages]
        if self._records != before:
            self._write()

    def note_run(self, number: int, directory: str) -> None:
        """Note the run of the stage `number`, counted from 0. One that is lost begins again."""
        before = self._records[number]
        is_lost = before.is_made and find_stage_run(self._directory, before) is None
        if before.directory != directory or is_lost:
            behind = _list_behind(self._records, [before.name])
            self._records = [_forget(one) if one.name in behind else one for one in self._records]
            self._records[number] = replace(before, directory=directory, is_made=False)
            self._write()

    def note_made(self, number: int) -> None:
        """Note that the run of the stage `number` is complete: its directory is missed from now on."""
        if not self._records[number].is_made:
            self._records[number] = replace(self._records[number], is_made=True)
            self._write()

    def _write(self) -> None:
        remove_file(RunDir(self._directory).report)
        listed = encode_checksummed({"stages": [asdict(stage) for stage in self._records]})
        publish_bytes(RunDir(self._directory).pipeline, listed)


def name_trial(directory: Path, rows: int) -> Path:
    """Return where the first `rows` rows of the pipeline in `directory` are tried: a pipeline of its own."""
    return RunDir(directory).hidden / f"first-{rows}"


def list_trials(directory: Path) -> list[Path]:
    """Return the trials of the pipeline in `directory`, those of fewer rows first."""
    found = [path for path in RunDir(directory).hidden.glob("first-*") if RunDir(path).pipeline.exists()]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _forget(stage: StageRecord) -> StageRecord:
    """Return the record of the stage as if it had not begun."""
    return replace(stage, directory=None, is_made=False)


def _list_behind(stages: Sequence[StageRecord], names: Sequence[str]) -> set[str]:
    """Return the stages of these names, and those that read one of them or one behind."""
    found = set(names)
    for stage in stages:  # A stage reads one before it.
        if stage.reads in found:
            found.add(stage.name)
    return found


def read_stages(directory: Path) -> list[StageRecord] | None:
    """Return the stages of the pipeline in `directory`, None if it has none."""
    path = RunDir(directory).pipeline
    value = read_checksummed(path) if path.exists() else None
    return None if value is None else [StageRecord(**stage) for stage in value["stages"]]


def find_stage_run(directory: Path, stage: StageRecord) -> Path | None:
    """Return the run of a stage of the pipeline in `directory`, None if it has not begun or is not there."""
    run = RunDir(RunDir(directory).stages / (stage.directory or ""))
    return run.root if run.plan.exists() or run.manifest.exists() else None
