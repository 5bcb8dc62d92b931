"""tune_job(): a short search for the engine settings that make the most tokens per second.

It measures with the pool and the driver that a run has, on prompts of the job's own input, and
writes to no run directory.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from synthia_batch.core.events import Event
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.types import Record, Request
from synthia_batch.errors import PoolFailed, SampleRefused, SynthiaBatchError, UsageError
from synthia_batch.inputs import open_files
from synthia_batch.job.plan import generate
from synthia_batch.job.resolved import PoolSpec, ResolvedJob
from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.operations.tune_search import Settings, explain_no_drafts, is_gain, list_axes, search
from synthia_batch.runner.ad_hoc import AdHocRun, run_requests
from synthia_batch.runner.directory.session import scan_input
from synthia_batch.runner.resolve.tuned import Tuned, keep_tuned
from synthia_batch.scheduler.events import EngineLost, Progress

_log = logging.getLogger(__name__)

PROMPTS_PER_ENGINE = {"cpu": 256, "cuda": 1024}
"""Enough to fill a batch twice the usual."""
ANSWER_TOKENS = 128
"""The most that an answer may have: longer ones cost time and tell nothing else."""
_STRETCHES = 16
"""Places of the input that prompts are taken from: a file may be sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measurement. `tokens_per_second` is of all engines while they had requests; None, with a
    `reason`, where they did not work with these settings.
    """

    settings: Settings
    tokens_per_second: float | None
    reason: str | None = None

    @property
    def speed(self) -> float:
        """The tokens per second, 0 where there are none."""
        return self.tokens_per_second or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a search came to. The first trial is the job as it was said.

    `stopped` says why the search ended before its end. `kept` are the settings that later jobs of
    this model on this hardware get by themselves, None where nothing was remembered.
    """

    trials: tuple[Trial, ...]
    stopped: DrainReason | None
    kept: Mapping[str, Any] | None

    @property
    def best(self) -> Trial:
        """The last trial that was a gain."""
        return _choose(self.trials)

    @property
    def is_interrupted(self) -> bool:
        """Whether somebody ended the search; the budget is part of it."""
        return self.stopped not in (None, DrainReason.DEADLINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a search may cost. `prompts` is None for as many as fill the engines."""

    budget_seconds: float
    prompts: int | None = None


def tune_job(job: ResolvedJob, effort: Effort) -> Tuning:
    """Search for the fastest engine settings of `job`, which was resolved without remembered ones.

    Measures one engine, unless the job says how many. Ends early on the budget, Ctrl-C or SIGTERM.

    Raises:
        UsageError: The input or the settings cannot be used, or the budget allows no measurement.
        PoolFailed: The engine does not work as the job says.
    """
    job = _shrink(job)
    drain = DrainRequest(effort.budget_seconds)
    with drain.listen():
        engines = job.pool.workers or 1
        wanted = effort.prompts or engines * PROMPTS_PER_ENGINE[job.engine.device]
        requests = choose_requests(job, wanted)
        why = explain_no_drafts(job.engine)
        if why is not None and job.engine.kind == "vllm":
            _log.info(f"speculative decoding is not tried: {why}")
        trials = tuple(_try_all(_Bench(job, requests, drain), len(requests) // engines))
    tuning = Tuning(trials=trials, stopped=drain.reason, kept=None)
    if tuning.is_interrupted:
        return tuning
    if not trials:
        raise UsageError("the budget was over before one setting was measured; give more with --budget 20m")
    if len(trials) == 1:
        return tuning
    return dataclasses.replace(tuning, kept=_remember(job, tuning.best))


def choose_requests(job: ResolvedJob, count: int) -> list[Request]:
    """Return `count` requests from all over the input, or all that there are.

    Raises:
        InputRefused: The input has faults.
        UsageError: It has no prompt that the job's format can express.
    """
    source = open_files(job.inputs)
    scan = scan_input(job, source)
    renderer = open_renderer(job.prompt)
    rows = -(-count // job.plan.samples_per_row)
    requests: list[Request] = []
    for first, stop in _spread(scan.rows, rows):
        for row in source.read_rows(scan, first, stop):
            for sample in generate(row, job.plan):
                try:
                    token_ids = renderer.render(sample.messages, row.tools)
                except SampleRefused:
                    continue
                requests.append(Request(ordinal=len(requests), token_ids=token_ids, seed=sample.seed))
    if not requests:
        raise UsageError("none of the prompts can be rendered; `synthia-batch plan` says more")
    return requests[:count]


def describe_settings(settings: Settings) -> str:
    """Return `settings` as a person reads them."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "the job as it is"


def describe_speed(trial: Trial) -> str:
    """Return what `trial` found, as a person reads it."""
    return f"failed: {trial.reason}" if trial.reason else f"{trial.speed:.1f} tokens/s"


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every measurement is made with."""

    job: ResolvedJob
    requests: Sequence[Request]
    drain: DrainRequest


class _CutShort(Exception):
    """The search is to end: this measurement tells nothing."""


@dataclass(slots=True, kw_only=True)
class _Meter:
    """A sink that writes nothing. Ends the measurement with the first engine that is lost."""

    drain: DrainRequest
    lost: str | None = None
    progress: Progress | None = None

    def record(self, records: Sequence[Record]) -> None:
        """Nothing is kept."""

    def tick(self) -> None:
        if self.drain.reason is not None:
            raise _CutShort
        if self.lost is not None:
            raise PoolFailed(f"the engine was lost: {self.lost}")

    def observe(self, event: Event) -> None:
        if isinstance(event, EngineLost):
            # The reason last: its last line says most, see _shorten.
            self.lost = f"{event.log_tail}\n{event.reason}".strip()
        elif isinstance(event, Progress):
            self.progress = event

    def measure(self) -> float:
        """Return the tokens per second of all engines together, while they had requests."""
        if self.progress is None:
            return 0.0
        busy = [worker.busy_seconds for worker in self.progress.workers]
        return self.progress.tokens * len(busy) / sum(busy) if sum(busy) else 0.0


def _try_all(bench: _Bench, prompts: int) -> Iterator[Trial]:
    """Measure what the search proposes, until it or the time is at its end."""
    proposals = search(list_axes(bench.job.engine, prompts))
    settings = next(proposals)
    while bench.drain.reason is None:
        _log.info(f"measuring {describe_settings(settings)}")
        try:
            trial = _measure(bench, settings)
        except _CutShort:
            return
        _log.info(f"  {describe_speed(trial)}")
        yield trial
        try:
            settings = proposals.send(trial.speed)
        except StopIteration:
            return


def _measure(bench: _Bench, settings: Settings) -> Trial:
    try:
        speed = _drive(bench, settings)
    except SynthiaBatchError as exc:
        if not settings:
            raise
        return Trial(settings=settings, tokens_per_second=None, reason=_shorten(str(exc)))
    if not speed:
        if not settings:
            raise PoolFailed("the engine made no token of the prompts; `synthia-batch run` says why")
        return Trial(settings=settings, tokens_per_second=None, reason="no sample could be made")
    return Trial(settings=settings, tokens_per_second=round(speed, 1))


def _drive(bench: _Bench, settings: Settings) -> float:
    meter = _Meter(drain=bench.drain)
    ad_hoc = AdHocRun(
        job=bench.job,
        sink=meter,
        publish=meter.observe,
        drain=DrainRequest(),  # The meter ends it without waiting for samples in flight.
        settings=settings,
    )
    run_requests(ad_hoc, bench.requests)
    return meter.measure()


def _shrink(job: ResolvedJob) -> ResolvedJob:
    """Return `job` with one engine unless it says how many, and shorter answers.

    Raises:
        UsageError: Its pool cannot load one vLLM after the other.
    """
    if job.engine.is_elsewhere:
        raise UsageError("tune measures engines of ours; a server's settings are the server's own")
    if job.pool.kind == "local" and job.engine.kind == "vllm":
        raise UsageError(
            "tune loads one engine after the other, each in a process of its own: drop --pool local"
        )
    limit = min(job.engine.sampling.max_tokens, ANSWER_TOKENS)
    sampling = job.engine.sampling.model_copy(update={"max_tokens": limit})
    pool: PoolSpec = dataclasses.replace(job.pool, workers=job.pool.workers or 1)
    return dataclasses.replace(job, engine=dataclasses.replace(job.engine, sampling=sampling), pool=pool)


def _spread(rows: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows to take `wanted` of `rows` from, evenly over all of them."""
    wanted = min(rows, wanted)
    stretches = min(_STRETCHES, wanted)
    for n in range(stretches):
        first = n * rows // stretches
        yield first, first + (n + 1) * wanted // stretches - n * wanted // stretches


def _choose(trials: Sequence[Trial]) -> Trial:
    best = trials[0]
    for trial in trials[1:]:
        if is_gain(trial.speed, best.speed):
            best = trial
    return best


def _remember(job: ResolvedJob, best: Trial) -> Mapping[str, Any] | None:
    tuned = Tuned(
        place=job.tuning_place,
        settings=best.settings,
        tokens_per_second=best.speed,
        found_on=date.today(),
    )
    try:
        return keep_tuned(tuned)
    except OSError as exc:
        _log.info(f"not remembered, the cache cannot be written: {exc}")
        return None


def _shorten(reason: str) -> str:
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return (lines[-1] if lines else "it does not say why")[:200]
