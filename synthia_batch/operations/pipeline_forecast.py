"""What a pipeline comes to: its first stage exactly, the others as upper limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.job.schema import Job
from synthia_batch.job.select import Select
from synthia_batch.operations.forecast import Forecast, check_input, forecast_job
from synthia_batch.runner.pipeline import name_place, name_root
from synthia_batch.runner.pipeline_check import check_pipeline
from synthia_batch.runner.resolve import resolve_job


@dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """A stage that has at most so many `samples`, of at most so many `requests` to engines.

    `reads` is the stage whose samples are its rows. `does` says what it keeps, or whether it loads engines.
    """

    name: str
    reads: str | None
    samples: int
    requests: int
    does: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "reads": self.reads,
            "most_samples": self.samples,
            "most_requests": self.requests,
            "does": self.does,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineForecast:
    """The content of `plan` for a pipeline. `first` is the forecast of the first stage alone."""

    name: str
    first: Forecast
    stages: tuple[StageForecast, ...]


def forecast_pipeline(pipeline: Pipeline, flags: Sequence[Layer], *, needs_model: bool) -> PipelineForecast:
    """Return the forecast of `pipeline`. Reads and tokenizes the whole input of its first stage."""
    root = check_pipeline(pipeline, flags)
    begin = resolve_job([*flags, pipeline.stages[0].layer], needs_model=needs_model)
    place = name_place(root or name_root(pipeline, begin), pipeline.stages[0], begin)
    first = forecast_job(replace(begin, output=place))
    # Else `best` may be of each row of another stage.
    keeps_all = not any("keep_columns" in (s.layer.values.get("input") or {}) for s in pipeline.stages[1:])
    found: dict[str, StageForecast] = {}
    loaded: Job | None = None
    for stage in pipeline.stages:
        rows = found[stage.reads].samples if stage.reads is not None else first.rows
        if stage.select is not None:
            if stage.select.combine is not None:
                rows = min(rows, _count_combined(pipeline, stage, found, first.rows))
            kept = _limit(stage.select, rows, first.rows if keeps_all else rows)
            found[stage.name] = _describe(stage, kept, 0, f"keeps at most {kept:,}")
            continue
        job: Job = stage.declare(flags)
        samples = rows * max(1, len(job.system)) * job.num_samples
        if stage.reads is None:
            samples = _count(stage, flags, needs_model) if found else first.samples
        requests = samples * (1 if job.accept is None else job.max_candidates)
        does = "loads its engines" if loaded is None or not _loads_like(job, loaded) else "keeps the engines"
        found[stage.name], loaded = _describe(stage, samples, requests, does), job
    return PipelineForecast(name=pipeline.name, first=first, stages=tuple(found.values()))


def _count(stage: Stage, flags: Sequence[Layer], needs_model: bool) -> int:
    """Return the number of samples of a stage that reads no other, whose rows are read once."""
    job = resolve_job([*flags, stage.layer], needs_model=needs_model)
    return check_input(job) * job.plan.samples_per_row


def _count_combined(
    pipeline: Pipeline, stage: Stage, found: Mapping[str, StageForecast], first_rows: int
) -> int:
    """Return how many samples `combine` makes at most of those of the stage before."""
    stages = {one.name: one for one in pipeline.stages}
    made = stages[str(stage.reads)]
    while made.select is not None:
        made = stages[str(made.reads)]
    per = stage.select.combine.per if stage.select is not None and stage.select.combine is not None else None
    if per in found and per != made.name:
        return found[str(per)].samples
    if made.reads is not None:
        return found[made.reads].samples
    return first_rows if made is pipeline.stages[0] else found[made.name].samples


def _limit(select: Select, rows: int, first_rows: int) -> int:
    limits = [limit for limit in (select.limit, select.sample) if limit is not None]
    if select.best is not None and select.per is None:
        limits.append(first_rows * select.top)
    return min([rows, *limits])


def _loads_like(job: Job, before: Job) -> bool:
    """Return whether two declared jobs have the same engines, as far as their models are not looked at."""
    names = ("model", "lora", "preset", "engine", "pool", "determinism")
    return all(getattr(job, name) == getattr(before, name) for name in names)


def _describe(stage: Stage, samples: int, requests: int, does: str) -> StageForecast:
    return StageForecast(name=stage.name, reads=stage.reads, samples=samples, requests=requests, does=does)
