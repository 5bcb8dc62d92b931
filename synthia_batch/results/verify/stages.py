"""Verifies a pipeline: every stage, and that each is made of what the stage before it has now."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthia_batch.results.read.stage_runs import is_made_of
from synthia_batch.results.verify.findings import Finding, FindingKind
from synthia_batch.results.verify.verify import Verification, verify_run
from synthia_batch.storage.pipeline_file import StageRecord, list_stage_runs
from synthia_batch.storage.recovery import OnProgress


def verify_stages(
    directory: Path, stages: Sequence[StageRecord], on_progress: OnProgress, *, decodes_rows: bool
) -> list[Verification]:
    """Check those of the `stages` of the pipeline in `directory` that have begun."""
    runs = list_stage_runs(directory) or {}
    found = []
    for stage in stages:
        run, source = runs[stage.name], runs.get(stage.reads or "")
        if run is None:
            continue
        checked = verify_run(run, on_progress, decodes_rows=decodes_rows)
        if stage.reads is not None and (source is None or not is_made_of(run, source)):
            what = f"its rows are not the samples that {stage.reads} has now"
            broken = Finding(kind=FindingKind.LINK, file=".synthia/plan.json", what=what)
            checked = replace(checked, findings=(*checked.findings, broken))
        found.append(checked)
    return found
