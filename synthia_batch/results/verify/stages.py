"""Verifies a pipeline: every stage, and that each is made of what the stage before it has now."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthia_batch.core.digest import digest_json
from synthia_batch.errors import SynthiaBatchError
from synthia_batch.inputs.fetch.run_directory import digest_run
from synthia_batch.results.verify.findings import Finding, FindingKind
from synthia_batch.results.verify.verify import Verification, verify_run
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import Manifest, read_manifest
from synthia_batch.storage.pipeline_file import StageRecord, list_stage_runs
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.recovery import OnProgress


def digest_parts(manifest: Manifest) -> str:
    """Return the digest of all samples of a run, finished and failed, as a selection names what it is of."""
    return digest_json([[part.path, part.rows_digest] for part in manifest.parts])[:32]


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
        if stage.reads is not None and (source is None or not _is_made_of(run, source)):
            what = f"its rows are not the samples that {stage.reads} has now"
            broken = Finding(kind=FindingKind.LINK, file=".synthia/plan.json", what=what)
            checked = replace(checked, findings=(*checked.findings, broken))
        found.append(checked)
    return found


def _is_made_of(run: Path, source: Path) -> bool:
    try:
        identity = require_plan(RunDir(run))["identity"]
        if "select" not in identity:
            return digest_run(source) == str(identity["input"]["digest"])
        manifest = read_manifest(RunDir(source).manifest)
    except SynthiaBatchError:  # What is wrong with either is a finding of its own.
        return False
    return manifest is not None and digest_parts(manifest) == identity["select"]["rows"]
