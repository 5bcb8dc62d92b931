"""Check whether the stages of a pipeline will fit on this machine, as `doctor` does for a job."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthia_batch.job.loading.merge import Layer, merge_layers
from synthia_batch.job.loading.pipeline_file import Pipeline
from synthia_batch.operations.doctor import ANY_INPUT, Diagnosis, list_job_checks, list_machine_checks
from synthia_batch.operations.gpu_machine import Check
from synthia_batch.runner.pipeline_check import check_pipeline
from synthia_batch.runner.resolve.model_selection import add_preset, choose_device


def examine_stages(pipeline: Pipeline, flags: Sequence[Layer]) -> Diagnosis:
    """Return the checks of each stage of `pipeline` that generates, behind those of the machine."""
    output = check_pipeline(pipeline, flags) or Path("outputs")
    machine: list[Check] = []
    checks: list[Check] = []
    seen: list[object] = []
    for stage in pipeline.stages:
        if stage.select is not None:
            continue
        chosen = add_preset(merge_layers([*flags, stage.layer, ANY_INPUT]))
        job = merge_layers(chosen.layers).job
        needed = (choose_device(job), job.engine.kind, job.engine.settings.get("base_url"), job.pool)
        if needed not in seen:  # Some checks take seconds.
            seen.append(needed)
            found = list_machine_checks(choose_device(job), output, job)
            machine += [check for check in found if check not in machine]
        of_stage = list_job_checks(job, chosen.preset)
        checks += [replace(check, name=f"{stage.name}: {check.name}") for check in of_stage]
    return Diagnosis(checks=(*machine, *checks))
