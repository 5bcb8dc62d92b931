"""Verifies a pipeline: every stage, and that each is made of what the stage before it has now."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthia_batch.results.read.stage_runs import StageRun
from synthia_batch.results.verify.findings import Finding, FindingKind
from synthia_batch.results.verify.verify import Verification, verify_run
from synthia_batch.storage.recovery import OnProgress


def verify_stages(
    stages: Sequence[StageRun], on_progress: OnProgress, *, decodes_rows: bool
) -> list[Verification]:
    """Check those of the `stages` of a pipeline that have begun; one that is lost is a finding."""
    found = []
    for stage in stages:
        if stage.lost is not None:
            missed = miss_stage(stage, stage.lost)
            found.append(Verification(directory=str(stage.lost), state="unknown", findings=(missed,)))
        if stage.run is None:
            continue
        checked = verify_run(stage.run, on_progress, decodes_rows=decodes_rows)
        if not stage.is_linked:
            what = f"its rows are not the samples that {stage.reads} has now"
            broken = Finding(kind=FindingKind.LINK, file=".synthia/plan.json", what=what)
            checked = replace(checked, findings=(*checked.findings, broken))
        found.append(checked)
    return found


def miss_stage(stage: StageRun, lost: Path) -> Finding:
    """Return the finding that the directory `lost` of a stage that was complete is not there."""
    what = f"the run of the stage {stage.name} was complete, and is not there"
    return Finding(kind=FindingKind.LOST, file=lost.name, what=what)
