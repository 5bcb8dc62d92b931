"""preview_job(): the prompts of some rows as engines will get them, and what engines answer."""

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Outcome, Sample
from synthia_batch.errors import SampleRefused
from synthia_batch.inputs import Scan, Source, open_files
from synthia_batch.job.plan import generate, limit_answer
from synthia_batch.job.resolved import EngineSpec, ResolvedJob
from synthia_batch.models.prompts.tokenizer import Renderer, ShownPrompt, open_renderer
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.partial import PartialSample, run_partial
from synthia_batch.runner.resolve import select_rows
from synthia_batch.runner.subset import SampleSubset, pick_rows
from synthia_batch.scheduler.multi_turn import MultiTurnSession, open_multi_turn
from synthia_batch.workers.engine import check_prompt_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows to show: the first `count`, or where `scattered`, so many from all over the input."""

    count: int
    scattered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePreview:
    """The first prompt of a sample, None where it cannot be rendered.

    `room` is the most tokens that its answer can have. `fault` says why it will fail, with the code of
    the failure. `outcome` is what the sample came to, where that is known.
    """

    sample: Sample
    prompt: ShownPrompt | None
    prompt_tokens: int
    room: int
    fault: SampleRefused | None
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The samples of the chosen rows, in order: for each system message the first.

    The others are of the run where answers were asked for: how many were `made` for this, how many
    samples of all have `ended`, and why not all that were asked for have.
    """

    directory: Path
    samples: Sequence[SamplePreview]
    made: int = 0
    total: int | None = None
    ended: int | None = None
    is_complete: bool = False
    drained: DrainReason | None = None


def preview_prompts(job: ResolvedJob, choice: Choice) -> Preview:
    """Return the prompts of the chosen rows. Writes nothing; of the first rows reads no others.

    Raises:
        InputRefused: What is read of the input has faults.
    """
    source = open_files(job.inputs)
    scan = _scan(job, source, choice)
    subset = pick_rows(scan.rows, job.plan, choice.count, scattered=choice.scattered)
    samples = (
        PartialSample(sample=sample, outcome=None) for sample in _read_samples(job, source, scan, subset)
    )
    return Preview(directory=job.output, samples=_show_all(job, samples))


def preview_answers(job: ResolvedJob, choice: Choice, display: Display) -> Preview:
    """Return the prompts of the chosen rows with their answers, made now where the run has none.

    Raises:
        SynthiaBatchError: As for make_early.
    """

    def choose(session: RunSession) -> SampleSubset:
        rows = session.scan.rows
        return pick_rows(rows, job.plan, choice.count, scattered=choice.scattered)

    partial = run_partial(job, choose, display)
    return Preview(
        directory=job.output,
        samples=_show_all(job, partial.samples),
        made=partial.made,
        total=partial.total,
        ended=partial.ended,
        is_complete=partial.is_complete,
        drained=partial.drained,
    )


def _scan(job: ResolvedJob, source: Source, choice: Choice) -> Scan:
    selection = select_rows(job.declared, job.prompt_template)
    if not choice.scattered:
        limits = [limit for limit in (selection.limit, choice.count) if limit is not None]
        selection = dataclasses.replace(selection, limit=min(limits))
    with tempfile.TemporaryDirectory(prefix="synthia-batch-") as scratch:
        return source.scan(selection, Path(scratch))


def _read_samples(job: ResolvedJob, source: Source, scan: Scan, subset: SampleSubset) -> Iterable[Sample]:
    chosen = frozenset(subset.ordinals)
    for index in dict.fromkeys(ordinal // job.plan.samples_per_row for ordinal in subset.ordinals):
        for row in source.read_rows(scan, index, index + 1):
            yield from (sample for sample in generate(row, job.plan) if sample.ordinal in chosen)


def _show_all(job: ResolvedJob, samples: Iterable[PartialSample]) -> list[SamplePreview]:
    renderer, conversations = open_renderer(job.prompt), open_multi_turn(job)
    return [_show(job.engine, renderer, conversations, partial) for partial in samples]


def _show(
    engine: EngineSpec, renderer: Renderer, conversations: MultiTurnSession, partial: PartialSample
) -> SamplePreview:
    ids: Sequence[int] = ()
    fault = None
    most = limit_answer(partial.sample.row, engine.sampling.max_tokens)
    try:
        ids = renderer.render(partial.sample.messages, partial.sample.row.tools)
        # What the run asks for, and what its engine checks before all else.
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
