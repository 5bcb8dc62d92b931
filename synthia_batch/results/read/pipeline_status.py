"""The status of a pipeline: that of each stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.results.read.stage_runs import read_stage_runs
from synthia_batch.results.read.status import RunStatus, StatusReader, describe_state
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import find_running
from synthia_batch.storage.pipeline_file import list_trials


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """Status of a pipeline. `state` is as a run's; `incomplete` if no stage that has begun is interrupted, as
    after `--until`. A stage that has not begun has None.

    `owner` is the process that plays it as `pid@host`. `outdated` are the stages before which others have
    changed: they are to be made again. `lost` are those that were complete and whose directory is not there.
    `trials` are the directories of rows that were tried, which are no part of it.
    """

    directory: str
    state: str
    owner: str | None
    stages: Mapping[str, RunStatus | None]
    outdated: tuple[str, ...]
    lost: tuple[str, ...]
    trials: tuple[str, ...] = ()

    @property
    def is_going_on(self) -> bool:
        """Whether it is being played, or may be."""
        begun = [found for found in self.stages.values() if found is not None]
        has_ended = self.state in ("complete", "incomplete", "interrupted")
        return not has_ended or any(found.is_going_on for found in begun)

    @property
    def latest(self) -> RunStatus | None:
        """The status of the last stage that has begun."""
        return next((found for found in reversed([*self.stages.values()]) if found is not None), None)

    @property
    def summary(self) -> str:
        """The state of each stage, in order: `ask, judge: complete; keep: not begun`."""
        states = [
            (name, "outdated" if name in self.outdated else self._name_state(name)) for name in self.stages
        ]
        groups = groupby(states, key=lambda pair: pair[1])
        return "; ".join(f"{', '.join(name for name, _ in group)}: {state}" for state, group in groups)

    def _name_state(self, stage: str) -> str:
        found = self.stages[stage]
        if found is not None:
            return found.state
        return "lost" if stage in self.lost else "not begun"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        stages = [
            {
                "stage": name,
                "is_outdated": name in self.outdated,
                **({"state": self._name_state(name)} if found is None else found.to_dict()),
            }
            for name, found in self.stages.items()
        ]
        return {
            "directory": self.directory,
            "state": self.state,
            "owner": self.owner,
            "stages": stages,
            "trials": [*self.trials],
        }


class PipelineStatusReader:
    """Reads the status of one pipeline repeatedly. Needs no lock."""

    def __init__(self, directory: Path) -> None:
        """Open the pipeline in `directory`."""
        self._directory = directory
        self._readers: dict[Path, StatusReader] = {}

    def read(self) -> PipelineStatus:
        """Return the current status."""
        run_dir = RunDir(self._directory)
        running = find_running(run_dir)
        runs = read_stage_runs(self._directory) or []
        stages = {one.name: None if one.run is None else self._read_run(one.run) for one in runs}
        outdated = tuple(one.name for one in runs if one.run is not None and not one.is_current)
        begun = [found for found in stages.values() if found is not None]
        is_interrupted = any(found.state != "complete" for found in begun)
        is_complete = len(begun) == len(stages) and not is_interrupted and not outdated
        state = "complete" if is_complete else describe_state(running, run_dir)
        if running is None and not (is_complete or is_interrupted):
            state = "incomplete"
        return PipelineStatus(
            directory=str(self._directory),
            state=state,
            owner=f"{running.pid}@{running.host}" if running and not is_complete else None,
            stages=stages,
            outdated=outdated,
            lost=tuple(one.name for one in runs if one.lost is not None),
            trials=tuple(map(str, list_trials(self._directory))),
        )

    def _read_run(self, run: Path) -> RunStatus | None:
        try:
            reader = self._readers.get(run) or StatusReader(run)
        except UsageError:  # It is being begun: its plan is not written yet.
            return None
        self._readers[run] = reader
        return reader.read()


def open_status(directory: Path) -> "StatusReader | PipelineStatusReader":
    """Return a reader of the status of the run or the pipeline in `directory`."""
    is_pipeline = RunDir(directory).pipeline.exists()
    return PipelineStatusReader(directory) if is_pipeline else StatusReader(directory)
