"""JobPreview some rows: their exact prompts, and optionally the answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Failed, Outcome, Sample
from synthia_batch.inputs import Scan, Source, open_files
from synthia_batch.job.plan import expand_row, limit_answer
from synthia_batch.job.resolved import EngineSpec, ResolvedJob
from synthia_batch.models.prompts.tokenizer import Renderer, ShownPrompt, open_renderer
from synthia_batch.runner.directory.plan import scan_input
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.partial import PartialSample, run_partial
from synthia_batch.runner.subset import SampleSubset, pick_rows
from synthia_batch.scheduler.multi_turn import MultiTurnSession, open_multi_turn
from synthia_batch.workers.engine import check_prompt_length


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePreview:
    """The first prompt of a sample, None if it cannot be rendered.

    `room` is the maximum number of tokens of its answer. `fault` says why the sample will fail. `outcome`
    is its result, if known.
    """

    sample: Sample
    prompt: ShownPrompt | None
    prompt_tokens: int
    room: int
    fault: SampleRefused | None
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPreview:
    """The first sample per system message of the selected rows, in order.

    With answers, the other fields describe the run: how many samples were `made` by this preview, how
    many of `total` have `ended`, and why the preview `drained` early.
    """

    directory: Path
    samples: Sequence[SamplePreview]
    made: int = 0
    total: int | None = None
    ended: int | None = None
    is_complete: bool = False
    drained: DrainReason | None = None

    @property
    def has_only_failures(self) -> bool:
        """Whether samples have ended, and none of them is finished."""
        ended = [one.outcome for one in self.samples if one.outcome is not None]
        return bool(ended) and all(isinstance(outcome, Failed) for outcome in ended)

    @property
    def exit_code(self) -> int:
        """That of `run`: 3 if of these samples all failed."""
        if self.drained is not None:
            return self.drained.exit_code
        return DrainReason.FAILURES.exit_code if self.has_only_failures else 0


def preview_prompts(job: ResolvedJob, count: int, *, scattered: bool) -> JobPreview:
    """Return the prompts of the first `count` rows, or if `scattered` of that many from across the input.

    Writes nothing; reads only the first rows if they suffice.
    """
    source = open_files(job.inputs)
    scan = scan_input(job, source, limit=None if scattered else count)
    subset = pick_rows(scan.rows, job.plan, count, scattered=scattered)
    samples = _read_samples(job, source, scan, subset)
    pending = (PartialSample(sample=sample, outcome=None) for sample in samples)
    return JobPreview(directory=job.output, samples=_preview_all(job, pending))


def preview_answers(job: ResolvedJob, count: int, display: Display, *, scattered: bool) -> JobPreview:
    """Return the prompts of the same rows with their answers, generating those that the run lacks."""

    def choose(session: RunSession) -> SampleSubset:
        return pick_rows(session.scan.rows, job.plan, count, scattered=scattered)

    partial = run_partial(job, choose, display)
    return JobPreview(
        directory=job.output,
        samples=_preview_all(job, partial.samples),
        made=partial.made,
        total=partial.total,
        ended=partial.ended,
        is_complete=partial.is_complete,
        drained=partial.drained,
    )


def _read_samples(job: ResolvedJob, source: Source, scan: Scan, subset: SampleSubset) -> Iterable[Sample]:
    selected = frozenset(subset.ordinals)
    for index in dict.fromkeys(ordinal // job.plan.samples_per_row for ordinal in subset.ordinals):
        for row in source.read_rows(scan, index, index + 1):
            yield from (sample for sample in expand_row(row, job.plan) if sample.ordinal in selected)


def _preview_all(job: ResolvedJob, samples: Iterable[PartialSample]) -> list[SamplePreview]:
    renderer, conversations = open_renderer(job.prompt), open_multi_turn(job)
    return [_preview_sample(job.engine, renderer, conversations, partial) for partial in samples]


def _preview_sample(
    engine: EngineSpec, renderer: Renderer, conversations: MultiTurnSession, partial: PartialSample
) -> SamplePreview:
    ids: Sequence[int] = ()
    fault = None
    most = limit_answer(partial.sample.row, engine.sampling.max_tokens)
    try:
        row = partial.sample.row
        if row.fault is not None:
            raise SampleRefused("bad_row", row.fault)
        ids = renderer.render(partial.sample.messages, row.tools, row.template_kwargs)
        # The same check as the engine's on the run's request.
        check_prompt_length(conversations.begin(partial.sample), engine.max_model_len)
    except SampleRefused as refused:
        fault = refused
    return SamplePreview(
        sample=partial.sample,
        prompt=renderer.show(ids) if len(ids) else None,
        prompt_tokens=len(ids),
        room=max(0, min(most, engine.max_model_len - len(ids))) if len(ids) else 0,
        fault=fault,
        outcome=partial.outcome,
    )
