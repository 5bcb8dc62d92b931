"""read_pipeline_report(): what became of the samples of a pipeline, stage by stage."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.job.select import NOT_SELECTED
from synthia_batch.results.export.pairs import Pair
from synthia_batch.results.read.counts import RunCounts, find_limit
from synthia_batch.results.read.history import list_attempts
from synthia_batch.results.read.shards import PublishedSamples, ShardSamples, list_samples
from synthia_batch.results.read.stage_runs import StageRun, read_stage_runs
from synthia_batch.results.report.scores import (
    Distribution,
    list_scores,
    read_distribution,
    read_pairs,
)
from synthia_batch.results.report.summary import find_state
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.storage.events import read_events
from synthia_batch.storage.parts.columns import read_part

_REASONS = (
    (re.compile(r"^duplicate of .*?(, similarity \d\.\d\d)?: "), "duplicate: "),
    (re.compile(r"^combined into .*$", re.DOTALL), "combined into another"),
    (re.compile(r"^shares words with row \d+ of "), "shares words with "),
)
"""What `Decisions.explain` writes, and the same without another sample or row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    """A stage in the funnel. `state` is its run's, `outdated` if a stage before it has changed.

    Of its `samples`, `kept` are the next stage's rows, `failed` are counted by code and `dropped` by reason;
    the others are still to be made. Tokens are those of the kept samples, None if it generates nothing;
    `seconds` are those of all attempts.
    """

    name: str
    run: str
    state: str
    rows: int
    samples: int
    kept: int
    failed: Mapping[str, int]
    dropped: Mapping[str, int]
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineReport:
    """The content of a pipeline's report. `missing` are the stages that have not begun, `lost` those that
    were complete and whose directory is not there.

    The `pairs` are by the score `paired_by`, None if there are none.
    """

    directory: str
    stages: Sequence[StageLine]
    missing: Sequence[str]
    lost: Sequence[str]
    scores: Sequence[Distribution]
    paired_by: str | None
    pairs: Sequence[Pair]

    @property
    def is_complete(self) -> bool:
        """Whether every stage is complete and made of what the one before it has now."""
        return not (self.missing or self.lost) and all(stage.state == "complete" for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the page as JSON-serializable values."""
        return {
            "directory": self.directory,
            "state": "complete" if self.is_complete else "incomplete",
            "stages": [{**asdict(stage), "seconds": round(stage.seconds, 1)} for stage in self.stages],
            "not_begun": [*self.missing],
            "lost": [*self.lost],
            "scores": [asdict(score) for score in self.scores],
        }


def read_pipeline_report(directory: Path) -> PipelineReport:
    """Return the report of the pipeline in `directory`, complete or not. Only reads, takes no lock.

    Raises:
        IntegrityError: A file of it was altered.
    """
    found = {one.name: one for one in read_stage_runs(directory) or []}
    lines, endings, current = [], dict[str, Counter[tuple[str, str]]](), []
    for name, stage in found.items():
        if stage.run is None:
            continue
        facts, source = read_facts(stage.run), found.get(stage.reads or "")
        shards = list_samples(facts)
        ended = endings[name] = _count_endings(facts, shards)
        lines.append(_describe(stage, facts, shards, ended - endings.get(stage.reads or "", Counter())))
        if stage.is_current:
            current.append((name, stage.run, source.run if source else None))
    scores = list_scores(current)
    paired = next(((score.text, pairs) for score in scores if (pairs := read_pairs(score))), None)
    return PipelineReport(
        # The name, not the path: the same pipeline gives the same page anywhere.
        directory=directory.resolve().name,
        stages=lines,
        missing=[name for name, stage in found.items() if stage.run is None and stage.lost is None],
        lost=[name for name, stage in found.items() if stage.lost is not None],
        scores=[values for score in scores if (values := read_distribution(score)) is not None],
        paired_by=paired[0] if paired else None,
        pairs=paired[1] if paired else (),
    )


def _count_endings(facts: RunFacts, shards: Sequence[ShardSamples]) -> Counter[tuple[str, str]]:
    """Count what failed by code, and what was not selected by reason as well.

    A selection's failed samples are those of the run that it reads and its own.
    """
    steps = facts.plan["identity"].get("select")
    counts, ended = RunCounts(max_tokens=None), Counter[tuple[str, str]]()
    for samples in shards:
        if steps is None or not isinstance(samples, PublishedSamples):
            codes = samples.read_codes()
            if codes is not None:
                counts.add_failed(codes)
        elif samples.shard_entry.failed:
            part = read_part(facts.run_dir.failed_part(samples.shard), ("code", "message"))
            for code, message in zip(*(column.to_pylist() for column in part.columns), strict=True):
                ended[code, _name_reason(message) if code == NOT_SELECTED else ""] += 1
    return ended + Counter({(code, ""): count for code, count in counts.codes.items()})


def _name_reason(message: str) -> str:
    """Return the reason of a message without the sample that it names, and how similar it is."""
    for pattern, reason in _REASONS:
        message = pattern.sub(reason, message)
    return message


def _describe(
    stage: StageRun, facts: RunFacts, shards: Sequence[ShardSamples], ended: Counter[tuple[str, str]]
) -> StageLine:
    is_selection = "select" in facts.plan["identity"]
    counts = RunCounts(max_tokens=find_limit(facts.plan["identity"]))
    for samples in shards:
        numbers = samples.read_numbers()
        if numbers is not None:
            counts.add_finished(numbers)
    total, state = counts.total, find_state(facts.run_dir)
    events = [event for event in read_events(facts.run_dir.events) if {"kind", "time"} <= event.keys()]
    attempts = list_attempts(events, is_running=state == "running")
    offered = total.finished + ended.total()
    return StageLine(
        name=stage.name,
        run=facts.run_dir.root.name,
        state=state if stage.is_current else "outdated",
        rows=offered if is_selection else facts.plan["scan"]["rows"],
        samples=offered if is_selection else facts.shards[-1].stop,
        kept=total.finished,
        failed={code: count for (code, _), count in _sort(ended) if code != NOT_SELECTED},
        dropped={reason: count for (code, reason), count in _sort(ended) if code == NOT_SELECTED},
        prompt_tokens=None if is_selection else total.prompts.tokens,
        completion_tokens=None if is_selection else total.answers.tokens,
        seconds=sum(attempt.seconds for attempt in attempts),
    )


def _sort(ended: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(ended.items(), key=lambda pair: (-pair[1], pair[0]))
