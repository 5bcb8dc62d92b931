"""Probe a job: generate samples from across it first, and estimate the whole job from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Finished
from synthia_batch.job.plan import limit_answer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.operations.estimate import (
    LengthSummary,
    Span,
    choose_speed,
    count_failures,
    list_lengths,
    predict_bytes,
    predict_seconds,
    predict_total,
    summarize_lengths,
)
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.partial import PartialRun, PartialSample, run_partial
from synthia_batch.runner.subset import SampleSubset, pick_probe
from synthia_batch.scheduler.throughput import Speed
from synthia_batch.storage.events import read_events
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.parts.schema import DataRecord
from synthia_batch.storage.parts.writer import encode_part, open_data_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The cost of a number of samples. `seconds` and `hours` are None if no speed is known.

    `hours` are GPU-hours, or on CPUs engine-hours.
    """

    samples: int
    tokens: Span
    seconds: Span | None
    hours: Span | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The result of a probe of `asked` samples. `known` of them have ended, `made` of those just now.

    `whole` covers all samples of the job, `left` those that have not ended. `data_bytes` is the estimated
    size of data/, None if no sample is finished. `drained` says why the probe ended early.
    """

    directory: Path
    asked: int
    known: int
    made: int
    drained: DrainReason | None
    is_complete: bool
    lengths: LengthSummary | None
    failures: Mapping[str, int]
    speed: Speed | None
    hours_of: str
    whole: Estimate
    left: Estimate
    data_bytes: int | None

    @property
    def has_only_failures(self) -> bool:
        """Whether samples have ended, and none of them is finished."""
        return 0 < self.known == sum(self.failures.values())

    @property
    def exit_code(self) -> int:
        """That of `run`: 3 if of these samples all failed."""
        if self.drained is not None:
            return self.drained.exit_code
        return DrainReason.FAILURES.exit_code if self.has_only_failures else 0


def probe_job(job: ResolvedJob, count: int, display: Display) -> Probe:
    """Generate `count` samples from across `job`, and estimate the whole job from them.

    They count as done in the run; a probe of all samples completes it. Samples from earlier probes and
    runs are reused.
    """

    def choose(session: RunSession) -> SampleSubset:
        return pick_probe(session.shards, count)

    partial = run_partial(job, choose, display)
    outcomes = [sample.outcome for sample in partial.samples if sample.outcome is not None]
    speed = choose_speed(read_speeds(RunDir(job.output)))
    lengths, longest = list_lengths(outcomes), _count_longest(job, partial.samples)
    left = partial.total - partial.ended
    tokens = predict_total(lengths, partial.total - len(lengths), longest).shift(sum(lengths))
    return Probe(
        directory=job.output,
        asked=len(partial.samples),
        known=len(outcomes),
        made=partial.made,
        drained=partial.drained,
        is_complete=partial.is_complete,
        lengths=summarize_lengths(outcomes),
        failures=count_failures(outcomes),
        speed=speed,
        hours_of="GPU" if job.engine.device == "cuda" else "engine",
        whole=_estimate(job, speed, partial.total, tokens),
        left=_estimate(job, speed, left, predict_total(lengths, left, longest)),
        data_bytes=_predict_bytes(partial),
    )


def _count_longest(job: ResolvedJob, samples: Sequence[PartialSample]) -> int:
    """Return the maximum tokens of a sample, with as many turns as any of `samples` has."""
    rows = [one.sample.row for one in samples]
    turns = max(1 + len(row.follow_ups) for row in rows)
    most = max(limit_answer(row, job.engine.sampling.max_tokens) for row in rows)
    return turns * min(most, job.engine.max_model_len)


def _estimate(job: ResolvedJob, speed: Speed | None, samples: int, tokens: Span) -> Estimate:
    if speed is None:
        return Estimate(samples=samples, tokens=tokens, seconds=None, hours=None)
    seconds = predict_seconds(tokens, speed)
    each = job.engine.tensor_parallel_size * job.engine.pipeline_parallel_size
    hours = seconds.scale(speed.engines * each / 3600)
    return Estimate(samples=samples, tokens=tokens, seconds=seconds, hours=hours)


def read_speeds(run_dir: RunDir) -> list[Speed]:
    """Return the speeds that the attempts of a run have measured, in order."""
    names = [field.name for field in fields(Speed)]
    events = (event for event in read_events(run_dir.events) if event.get("kind") == Speed.kind)
    complete = (event for event in events if all(name in event for name in names))
    return [Speed(**{name: event[name] for name in names}) for event in complete]


def _predict_bytes(partial: PartialRun) -> int | None:
    """Return the estimated size of data/, from parts encoded with the finished samples."""
    part_format = partial.session.assembler.part_format
    records = [
        DataRecord(one.sample, one.outcome) for one in partial.samples if isinstance(one.outcome, Finished)
    ]
    if not records:
        return None
    ended = sum(one.outcome is not None for one in partial.samples)
    sizes = {
        count: len(encode_part(open_data_part(part_format), records[:count]).content)
        for count in {len(records), -(-len(records) // 2)}
    }
    return predict_bytes(sizes, partial.total * len(records) // ended, len(partial.session.shards))
