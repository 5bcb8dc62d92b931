"""The runs of a pipeline's stages, and whether each is made of what the one before it has now."""

from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.digest import digest_json
from synthia_batch.core.errors import SynthiaBatchError, UsageError
from synthia_batch.inputs.fetch.run_directory import digest_run
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import Manifest, read_manifest
from synthia_batch.storage.pipeline_file import find_stage_run, read_stages
from synthia_batch.storage.plan_file import require_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """The run of a stage, None if it has not begun, or `lost` has the directory where it is missed.

    `is_linked`: it is made of what the stage that it `reads` has now. `is_current`: no stage before it has
    changed. `declared` is the digest of what the pipeline's file said of it.
    """

    name: str
    reads: str | None
    declared: str
    run: Path | None
    lost: Path | None
    is_linked: bool
    is_current: bool


def read_stage_runs(directory: Path) -> list[StageRun] | None:
    """Return the stages of the pipeline in `directory`, in order; None if it has none.

    Raises:
        IntegrityError: Its list of stages was altered.
    """
    stages = read_stages(directory)
    if stages is None:
        return None
    found: dict[str, StageRun] = {}
    for stage in stages:
        run, source = find_stage_run(directory, stage), found.get(stage.reads or "")
        source_run = source.run if source is not None else None
        is_linked = run is not None and (
            stage.reads is None or (source_run is not None and is_made_of(run, source_run))
        )
        is_lost = run is None and stage.is_made and stage.directory is not None
        found[stage.name] = StageRun(
            name=stage.name,
            reads=stage.reads,
            declared=stage.declared,
            run=run,
            lost=RunDir(directory).stages / str(stage.directory) if is_lost else None,
            is_linked=is_linked,
            is_current=is_linked and (source is None or source.is_current),
        )
    return [*found.values()]


def find_result(directory: Path) -> Path:
    """Return the run of the last stage if there is a pipeline in `directory`, else `directory`.

    Raises:
        UsageError: The last stage has not begun, or those before it have changed.
    """
    found = read_stage_runs(directory)
    if not found:
        return directory
    last = found[-1]
    if last.run is None or not last.is_current:
        there = ", ".join(str(stage.run) for stage in found if stage.run is not None) or "none yet"
        what = "has not come to" if last.run is None else "has changed before"
        if last.lost is not None:
            what = f"misses {last.lost.name}, the run of"
        raise UsageError(
            f"{directory}: the pipeline {what} its last stage, {last.name}; run it again, or name the run of "
            f"a stage: {there}"
        )
    return last.run


def digest_parts(manifest: Manifest) -> str:
    """Return the digest of all samples of a run, finished and failed, as a selection names what it is of."""
    return digest_json([[part.path, part.rows_digest] for part in manifest.parts])[:32]


def is_made_of(run: Path, source: Path) -> bool:
    """Return whether the rows of `run` are the samples that `source`, the run before it, has now."""
    try:
        identity = require_plan(RunDir(run))["identity"]
        if "select" not in identity:
            return digest_run(source) == str(identity["input"]["digest"])
        manifest = read_manifest(RunDir(source).manifest)
    except SynthiaBatchError:  # What is wrong with either is a finding of its own.
        return False
    return manifest is not None and digest_parts(manifest) == identity["select"]["rows"]
