"""A pipeline of three stages, the first a simulated job: ended at any moment, then played in a calm attempt.

It has a disk of its own. The second stage asks about each answer of the first, the third keeps some of them.
"""

import dataclasses
from pathlib import Path
from random import Random

from simulation import invariants
from simulation.attempt import make_attempt
from simulation.disk import SimulatedDisk
from simulation.faults import Violation
from simulation.jobs import SimulatedJob, declare_job, read_output
from simulation.schedule import CALM, draw_stages
from simulation.world import World
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import read_pipeline
from synthia_batch.results.read.stage_runs import read_stage_runs
from synthia_batch.results.verify.stages import verify_stages

CALM_STAGES = dataclasses.replace(CALM, kind="pipeline")
KEPT = "judge.completion_tokens > 60"
"""About three quarters of the judgements."""


def add_stages(simulated: SimulatedJob, directory: Path) -> SimulatedJob:
    """Return `simulated` with a pipeline behind it, and the files that it writes undisturbed.

    Without one where no sample is left for a later stage.
    """
    template = directory / "judge.jinja"
    template.write_text("How good is {{ answer.response }}?")
    first = {"name": "answer", **declare_job(simulated.shape, directory)}
    judge = {"name": "judge", "input": {"prompt_template": str(template)}}
    judge |= {"engine": {"kind": "scripted"}, "pool": {"kind": "local"}, "samples_per_file": 3}
    values = {
        "stages": [first, judge, {"name": "keep", "select": {"where": KEPT}}],
        "output": str(simulated.job.output.with_name("stages")),
        "report": False,
    }
    pipeline = read_pipeline(Layer(origin="argument", values=values), Path("simulated"))
    simulated = dataclasses.replace(simulated, pipeline=pipeline)
    world = _open(simulated, 0)
    ended = make_attempt(world, CALM_STAGES, Random(0))
    if not ended.is_complete:
        return dataclasses.replace(simulated, pipeline=None)
    return dataclasses.replace(simulated, played=_read_files(simulated))


def try_stages(simulated: SimulatedJob, seed: int) -> None:
    """Play the pipeline in attempts that end anyhow, then in a calm one, and check its files."""
    if simulated.pipeline is None:
        return
    draw = Random(f"{seed} stages")
    world = _open(simulated, seed)
    for attempt in draw_stages(draw, simulated.shape):
        invariants.only_a_cause_ends_an_attempt(attempt, make_attempt(world, attempt, draw))
    invariants.a_calm_attempt_completes_the_run(make_attempt(world, CALM_STAGES, draw))
    invariants.compare_files(_read_files(simulated), simulated.played)
    root = _find_root(simulated)
    for checked in verify_stages(read_stage_runs(root) or (), lambda done, total: None, decodes_rows=False):
        if checked.findings or checked.state != "complete":
            raise Violation("verify_is_clean", f"{checked.directory}: {checked.state}: {checked.findings}")


def _open(simulated: SimulatedJob, seed: int) -> World:
    root = _find_root(simulated)
    disk = SimulatedDisk(root, Random(f"disk of stages {seed}"))
    disk.forget()
    # The stages name their own places; up to the first of them it stands for all.
    job = dataclasses.replace(simulated.job, output=root, remote=None)
    return World(simulated=dataclasses.replace(simulated, job=job), disk=disk, seed=seed)


def _find_root(simulated: SimulatedJob) -> Path:
    assert simulated.pipeline is not None
    assert simulated.pipeline.output is not None
    return Path(simulated.pipeline.output)


def _read_files(simulated: SimulatedJob) -> dict[str, bytes]:
    root = _find_root(simulated)
    found = {"pipeline.json": (root / "pipeline.json").read_bytes()}
    for run in sorted((root / "stages").iterdir()):
        found |= {f"{run.name}/{name}": content for name, content in read_output(run).items()}
    return found
