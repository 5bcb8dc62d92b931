"""Search briefly for the engine settings with the most tokens per second.

Measures with a run's own pool and driver, on prompts from the job's input. Writes to no run directory.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from synthia_batch.core.errors import PoolFailed, SampleRefused, SynthiaBatchError, UsageError
from synthia_batch.core.events import Event
from synthia_batch.core.formatting import format_count
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.types import Record, Request
from synthia_batch.inputs import open_files
from synthia_batch.job.plan import expand_row
from synthia_batch.job.resolved import PoolSpec, ResolvedJob
from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.operations.tune_search import Settings, explain_no_drafts, is_gain, list_axes, search
from synthia_batch.runner.ad_hoc import AdHocRun, run_requests
from synthia_batch.runner.directory.plan import scan_input
from synthia_batch.runner.resolve.tuned import Tuned, keep_tuned
from synthia_batch.scheduler.events import EngineLost, Progress
from synthia_batch.scheduler.prompt_cuts import open_cutter

_log = logging.getLogger(__name__)

PROMPTS_PER_ENGINE = {"cpu": 256, "cuda": 1024}
"""Enough to fill a batch of twice the default size."""
ANSWER_TOKENS = 128
"""The limit of an answer: longer ones take time without changing the result."""
_STRETCHES = 16
"""Prompts are taken from this many places in the input, as a file may be sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measurement. `tokens_per_second` covers all engines while they had requests; None, with a
    `reason`, if they failed with these settings.
    """

    settings: Settings
    tokens_per_second: float | None
    reason: str | None = None

    @property
    def speed(self) -> float:
        """The tokens per second, 0 if the trial failed."""
        return self.tokens_per_second or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The result of a search. The first trial is the unchanged job.

    `stopped` says why the search ended early. `kept` are the settings saved for later jobs with this
    model on this hardware, None if none were saved.
    """

    trials: tuple[Trial, ...]
    stopped: DrainReason | None
    kept: Mapping[str, Any] | None

    @property
    def best(self) -> Trial:
        """The last trial that was an improvement."""
        return _find_best(self.trials)

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal ended the search, rather than its budget."""
        return self.stopped not in (None, DrainReason.DEADLINE)


def tune_job(job: ResolvedJob, budget_seconds: float, prompts: int | None = None) -> Tuning:
    """Search for the fastest engine settings of `job`, which must be resolved without saved ones.

    Measures one engine unless the job sets a number, with `prompts` per measurement, by default enough
    to fill the engines. Ends early on the budget, Ctrl-C or SIGTERM.

    Raises:
        UsageError: The input or the settings are invalid, or the budget or the prompts allow no measurement.
        PoolFailed: The engine does not work with the job's own settings.
    """
    job = _shrink(job)
    drain = DrainRequest(budget_seconds)
    with drain.listen():
        engines = job.pool.workers or 1
        wanted = prompts or engines * PROMPTS_PER_ENGINE[job.engine.device]
        requests = select_requests(job, wanted)
        why = explain_no_drafts(job.engine)
        if why is not None and job.engine.kind == "vllm":
            _log.info(f"not trying speculative decoding: {why}")
        trials = tuple(_try_all(_Workbench(job, requests, drain), len(requests) // engines))
    tuning = Tuning(trials=trials, stopped=drain.reason, kept=None)
    if tuning.is_interrupted:
        return tuning
    if not trials:
        raise UsageError("the budget ended before the first measurement; raise it with --budget 20m")
    if len(trials) == 1:
        return tuning
    return dataclasses.replace(tuning, kept=_save_best(job, tuning.best))


def select_requests(job: ResolvedJob, count: int) -> list[Request]:
    """Return `count` requests from across the input, or all of them if there are fewer.

    Raises:
        UsageError: The job's format cannot express any of the prompts.
    """
    source = open_files(job.inputs)
    scan = scan_input(job, source)
    renderer = open_renderer(job.prompt)
    cutter = open_cutter(job, renderer)
    rows = -(-count // job.plan.samples_per_row)
    requests: list[Request] = []
    for first, stop in _spread(scan.rows, rows):
        for row in source.read_rows(scan, first, stop):
            for sample in expand_row(row, job.plan) if row.fault is None else ():
                try:
                    token_ids = renderer.render(sample.messages, row.tools, row.template_kwargs)
                except SampleRefused:
                    continue
                cuts = cutter.cut(sample, token_ids, None, is_last=True).cuts if cutter else ()
                requests.append(
                    Request(ordinal=len(requests), token_ids=token_ids, seed=sample.seed, cuts=cuts)
                )
    if not requests:
        raise UsageError("none of the prompts can be rendered; see `synthia-batch plan`")
    return requests[:count]


def describe_settings(settings: Settings) -> str:
    """Return `settings` as text."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "the job's own settings"


@dataclass(frozen=True, slots=True)
class _Workbench:
    job: ResolvedJob
    requests: Sequence[Request]
    drain: DrainRequest


class _Interrupted(Exception):
    """The search must end; this measurement is incomplete."""


@dataclass(slots=True, kw_only=True)
class _SpeedSink:
    """A sink that writes nothing. Ends the measurement if an engine is lost."""

    drain: DrainRequest
    lost: str | None = None
    progress: Progress | None = None

    def record(self, records: Sequence[Record]) -> None:
        """Do nothing: only events are measured."""

    def tick(self) -> None:
        if self.drain.reason is not None:
            raise _Interrupted
        if self.lost is not None:
            raise PoolFailed(f"the engine was lost: {self.lost}")

    def observe(self, event: Event) -> None:
        if isinstance(event, EngineLost):
            # The reason last: _shorten keeps only the last line.
            self.lost = f"{event.log_tail}\n{event.reason}".strip()
        elif isinstance(event, Progress):
            self.progress = event

    @property
    def tokens(self) -> int:
        """The number of tokens generated."""
        return 0 if self.progress is None else self.progress.tokens

    def measure(self) -> float:
        """Return the total tokens per second of all engines while they had requests.

        0 if none were generated, or in less time than events tell, a millisecond.
        """
        busy = [worker.busy_seconds for worker in self.progress.workers] if self.progress else []
        return self.tokens * len(busy) / sum(busy) if sum(busy) else 0.0


def _try_all(bench: _Workbench, prompts: int) -> Iterator[Trial]:
    """Yield measurements of the proposed settings, until the search or the budget ends."""
    proposals = search(list_axes(bench.job.engine, prompts))
    settings = next(proposals)
    while bench.drain.reason is None:
        _log.info(f"measuring {describe_settings(settings)}")
        try:
            trial = _measure(bench, settings)
        except _Interrupted:
            return
        _log.info(f"  failed: {trial.reason}" if trial.reason else f"  {trial.speed:.1f} tokens/s")
        yield trial
        try:
            settings = proposals.send(trial.speed)
        except StopIteration:
            return


def _measure(bench: _Workbench, settings: Settings) -> Trial:
    try:
        found = _drive(bench, settings)
    except SynthiaBatchError as exc:
        if not settings:
            raise
        return Trial(settings=settings, tokens_per_second=None, reason=_shorten(str(exc)))
    speed = found.measure()
    if speed:
        return Trial(settings=settings, tokens_per_second=round(speed, 1))
    short = f"{format_count(found.tokens, 'token')} in less than a millisecond, too short to measure"
    if settings:
        reason = short if found.tokens else "every sample failed"
        return Trial(settings=settings, tokens_per_second=None, reason=reason)
    if not found.tokens:
        raise PoolFailed("the engine generated no tokens; find out why with `synthia-batch run`")
    waits = " or let it wait, --set engine.latency_ms=5" if bench.job.engine.kind == "scripted" else ""
    raise UsageError(f"the engine generated {short}; give it more of the input with --prompts N{waits}")


def _drive(bench: _Workbench, settings: Settings) -> _SpeedSink:
    sink = _SpeedSink(drain=bench.drain)
    ad_hoc = AdHocRun(
        job=bench.job,
        sink=sink,
        publish=sink.observe,
        drain=DrainRequest(),  # The sink ends it without waiting for samples in flight.
        settings=settings,
    )
    run_requests(ad_hoc, bench.requests)
    return sink


def _shrink(job: ResolvedJob) -> ResolvedJob:
    """Return `job` with one engine unless it sets a number, and with shorter answers."""
    if job.engine.is_elsewhere:
        raise UsageError("tune measures local engines; tune an external server with its own settings")
    if job.pool.kind == "local" and job.engine.kind == "vllm":
        raise UsageError(
            "tune loads several engines in turn, each in a separate process; remove --pool local"
        )
    limit = min(job.engine.sampling.max_tokens, ANSWER_TOKENS)
    sampling = job.engine.sampling.model_copy(update={"max_tokens": limit})
    pool: PoolSpec = dataclasses.replace(job.pool, workers=job.pool.workers or 1)
    return dataclasses.replace(job, engine=dataclasses.replace(job.engine, sampling=sampling), pool=pool)


def _spread(rows: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows with `wanted` of `rows` in total, spread evenly."""
    wanted = min(rows, wanted)
    stretches = min(_STRETCHES, wanted)
    for n in range(stretches):
        first = n * rows // stretches
        yield first, first + (n + 1) * wanted // stretches - n * wanted // stretches


def _find_best(trials: Sequence[Trial]) -> Trial:
    best = trials[0]
    for trial in trials[1:]:
        if is_gain(trial.speed, best.speed):
            best = trial
    return best


def _save_best(job: ResolvedJob, best: Trial) -> Mapping[str, Any] | None:
    tuned = Tuned(
        place=job.tuning_place,
        settings=best.settings,
        tokens_per_second=best.speed,
        found_on=date.today(),
    )
    try:
        return keep_tuned(tuned)
    except OSError as exc:
        _log.info(f"the settings were not saved: cannot write the cache: {exc}")
        return None


def _shorten(reason: str) -> str:
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:200]
