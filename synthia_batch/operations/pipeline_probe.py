"""What a whole pipeline takes, estimated from some rows that were carried through all of its stages.

The first stage has as many samples as the plan says. A later one has a row for each sample that the one
before it keeps: the share kept of the rows tried, in the range that contains nine of ten such shares (E. B.
Wilson, "Probable inference, the law of succession, and statistical inference", 1927), up to what the plan
says at most. What `dedup` keeps of more rows cannot be known from a few, so its range begins at 0. Tokens
and seconds of so many samples are estimated as those of a job.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from synthia_batch.core.console import Display
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.pipeline_file import Pipeline, Stage
from synthia_batch.operations.estimate import Span, choose_speed, predict_seconds, predict_total
from synthia_batch.operations.pipeline_forecast import PipelineForecast, StageForecast
from synthia_batch.operations.pipeline_trial import StageSamples, Trial, read_samples, try_pipeline
from synthia_batch.operations.probe import read_speeds
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan

_DEVIATIONS = 1.645
"""Nine of ten values of a normal distribution are within so many standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """What a stage of the whole pipeline takes. Of the `tried` samples of the trial, it keeps `kept`.

    `samples` are those that it makes, or selects from. A selection has no `tokens` and `seconds`; those are
    None as well if no speed was measured.
    """

    name: str
    tried: int
    kept: int
    samples: Span
    tokens: Span | None
    seconds: Span | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineProbe:
    """The estimates of the stages that `trial` has reached, and the sum of their seconds.

    `seconds` is None if a stage is missing or has no speed.
    """

    trial: Trial
    stages: Sequence[StageEstimate]
    seconds: Span | None


def probe_pipeline(
    pipeline: Pipeline,
    flags: Sequence[Layer],
    forecast: PipelineForecast,
    rows: int,
    make_display: Callable[[], Display],
) -> PipelineProbe:
    """Carry the first `rows` rows through all stages, and estimate the whole of `forecast` from them."""
    trial = try_pipeline(pipeline, flags, rows, make_display)
    made = {found.name: found for found in read_samples(trial)}
    planned = {stage.name: stage for stage in forecast.stages}
    kept: dict[str, Span] = {}
    stages = []
    for stage in pipeline.stages:
        if stage.name not in made:
            break
        found = _estimate_stage(stage, planned[stage.name], made, kept)
        share = _find_share(found.kept, found.tried, is_whole=found.tried >= found.samples.high)
        least = 0.0 if stage.select is not None and stage.select.dedup is not None else share.low
        most = min(found.samples.high * share.high, planned[stage.name].samples)
        kept[stage.name] = Span(low=min(found.samples.low * least, most), high=most)
        stages.append(found)
    timed = [found.seconds for found in stages if found.tokens is not None]
    known = [seconds for seconds in timed if seconds is not None]
    is_known = len(stages) == len(pipeline.stages) and len(known) == len(timed)
    total = Span(low=sum(one.low for one in known), high=sum(one.high for one in known))
    return PipelineProbe(trial=trial, stages=stages, seconds=total if is_known else None)


def _estimate_stage(
    stage: Stage, planned: StageForecast, made: Mapping[str, StageSamples], kept: Mapping[str, Span]
) -> StageEstimate:
    own = made[stage.name]
    if stage.select is not None and stage.reads is not None:
        return StageEstimate(
            name=stage.name,
            tried=len(made[stage.reads].finished),
            kept=len(own.finished),
            samples=kept[stage.reads],
            tokens=None,
            seconds=None,
        )
    plan = require_plan(RunDir(own.run))
    samples = Span(low=planned.samples, high=planned.samples)
    if stage.reads is not None:
        samples = kept[stage.reads].scale(plan["samples_per_row"])
    lengths = [one.completion_tokens * (one.candidates or 1) for one in own.finished] + [0] * len(own.failed)
    longest = plan["identity"]["sampling"]["max_tokens"] * max(1, planned.requests // max(1, planned.samples))
    tokens = Span(low=sum(lengths), high=sum(lengths))
    if len(lengths) < samples.high:
        tokens = Span(
            low=predict_total(lengths, ceil(samples.low), longest).low,
            high=predict_total(lengths, ceil(samples.high), longest).high,
        )
    speed = choose_speed(read_speeds(RunDir(own.run)))
    return StageEstimate(
        name=stage.name,
        tried=len(lengths),
        kept=len(own.finished),
        samples=samples,
        tokens=tokens,
        seconds=None if speed is None else predict_seconds(tokens, speed),
    )


def _find_share(kept: int, tried: int, *, is_whole: bool) -> Span:
    """Return the share of samples that are kept, as a range unless those tried are the whole."""
    share = kept / max(1, tried)
    if is_whole or not tried:
        return Span(low=share, high=share)
    squared = _DEVIATIONS**2 / tried
    middle = (share + squared / 2) / (1 + squared)
    half = _DEVIATIONS * sqrt(share * (1 - share) / tried + squared / (4 * tried)) / (1 + squared)
    return Span(low=max(0.0, middle - half), high=min(1.0, middle + half))
