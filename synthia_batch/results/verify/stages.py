"""Verifies a pipeline: every stage, and that each is made of what the stage before it has now."""

from dataclasses import replace
from pathlib import Path

from synthia_batch.core.digest import digest_json
from synthia_batch.errors import SynthiaBatchError
from synthia_batch.inputs.fetch.run_directory import digest_run
from synthia_batch.results.verify.findings import Finding, FindingKind
from synthia_batch.results.verify.verify import Verification, verify_run
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import Manifest, read_manifest
from synthia_batch.storage.pipeline_file import StageRecord
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.recovery import OnProgress


def digest_parts(manifest: Manifest) -> str:
    """Return the digest of all samples of a run, finished and failed, as a selection names what it is of."""
    return digest_json([[part.path, part.rows_digest] for part in manifest.parts])[:32]


def verify_stages(
    directory: Path, records: list[StageRecord], on_progress: OnProgress, *, decodes_rows: bool
) -> list[Verification]:
    """Check the stages of the pipeline in `directory`, of which `records` has the latest."""
    places = {record.name: RunDir(directory).stages / record.directory for record in records}
    found = []
    for record in records:
        checked = verify_run(places[record.name], on_progress, decodes_rows=decodes_rows)
        if record.reads is not None and not _is_made_of(places[record.name], places[record.reads]):
            what = f"its rows are not the samples that {record.reads} has now"
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
