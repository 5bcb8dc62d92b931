"""The job of a shape, as resolved from real input, and the files that its undisturbed run writes."""

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from simulation.schedule import Shape
from simulation.store import LEASE_SECONDS, URL
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline
from synthia_batch.job.resolved import Remote, ResolvedJob
from synthia_batch.job.schema import Job
from synthia_batch.runner.resolve import resolve_job

logging.getLogger("synthia_batch").setLevel(logging.CRITICAL)

ACCEPT = "completion_tokens > 128"
"""About half of the answers."""


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A shape's job; its run is always in the same directory. `expected` has the files by name.

    `selected` has those of its selection, none if its parts are not of Parquet. `pipeline` is the one whose
    first stage it is, if there is one, and `played` has the files of all its stages.
    """

    shape: Shape
    job: ResolvedJob
    expected: dict[str, bytes]
    selected: dict[str, bytes] = dataclasses.field(default_factory=dict)
    pipeline: Pipeline | None = None
    played: dict[str, bytes] = dataclasses.field(default_factory=dict)


def write_job(shape: Shape, directory: Path) -> ResolvedJob:
    """Write the input of `shape` to `directory`; return its job, whose run is in `directory`/out."""
    values = {"name": "simulated", "output": directory / "out"} | declare_job(shape, directory)
    explicit = Job.model_validate(values).model_dump(exclude_unset=True)
    job = resolve_job([Layer(origin="argument", values=explicit)])
    remote = Remote(url=URL, lease_seconds=LEASE_SECONDS, request_seconds=10.0, patience_seconds=300.0)
    return dataclasses.replace(job, remote=remote) if shape.is_remote else job


def declare_job(shape: Shape, directory: Path) -> dict[str, Any]:
    """Write the input of `shape` to `directory`; return the keys of its job but for the output."""
    # Shapes that shrink have one number: each has an input of its own.
    path = directory / f"rows-{shape.number}-{sha256(repr(shape).encode()).hexdigest()[:8]}.jsonl"
    if not path.exists():  # A pipeline begins with the same.
        path.write_text("".join(json.dumps(row) + "\n" for row in _list_rows(shape)))
    values: dict[str, Any] = {
        "input": {"path": str(path), "on_bad_row": "fail" if shape.bad_row is not None else "refuse"},
        "system": ["a system message", "another one"][: shape.systems],
        "num_samples": shape.samples,
        "samples_per_file": shape.samples_per_file,
        "flags": shape.flags,
        "drop_flagged": shape.drops,
        "engine": {"kind": "scripted"},
        "pool": {"kind": "local"},
        "report": False,
    }
    if shape.turns:
        values["input"]["turns_column"] = "turns"
    if shape.candidates:
        values |= {"accept": ACCEPT, "max_candidates": shape.candidates}
    return values


def _list_rows(shape: Shape) -> list[dict[str, Any]]:
    name = "turns" if shape.turns else "prompt"
    rows: list[dict[str, Any]] = []
    for row in range(shape.rows):
        question: Any = f"Question {shape.number}.{row}?"
        if shape.turns:
            question = [f"{question} Part {turn}." for turn in range(1 + row % shape.turns)]
        rows.append({name: None if row == shape.bad_row else question})
    return rows


def read_output(directory: Path) -> dict[str, bytes]:
    """Return the files of the dataset by name: parts, card and manifest."""
    found: dict[str, bytes] = {}
    for folder in ("data", "failed", "."):
        try:
            names = os.listdir(directory / folder)
        except FileNotFoundError:
            continue
        for name in names:
            if not name.startswith(".") and name.endswith((".parquet", ".md", ".json")):
                found[name] = (directory / folder / name).read_bytes()
    return found
