"""read_report(): the content of a run's report, from its directory: counts, history and examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from synthia_batch.core.errors import IntegrityError
from synthia_batch.job.select import NOT_SELECTED
from synthia_batch.results.read.counts import RunCounts, find_limit
from synthia_batch.results.read.history import AttemptSummary, RunHistory, list_attempts, read_history
from synthia_batch.results.read.input_rows import InputRows
from synthia_batch.results.read.shards import PublishedSamples, ShardSamples, list_samples
from synthia_batch.results.report.answers import AnswerTexts, read_texts
from synthia_batch.results.report.bins import Bins, make_bins
from synthia_batch.results.report.samples import (
    ReportFailure,
    ReportSample,
    ReportSelection,
    SampleFetcher,
    SideBySide,
)
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.storage.events import read_events
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import find_running
from synthia_batch.storage.manifest import ManifestPart, read_manifest
from synthia_batch.storage.parts.columns import PartNumbers, read_part_facts

State = Literal["complete", "running", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """Facts about a run. `max_tokens` is the limit of an answer, None if rows have their own;
    `max_model_len` is the context length, None if only a server knows it.

    `plays_turns`: a sample is a conversation, and its tokens are sums. `writer` is the library that wrote
    the first part, empty if there is none.
    """

    directory: str
    name: str
    source_file: str
    fingerprint: str
    state: State
    rows: int
    samples: int
    systems: tuple[str, ...]
    max_tokens: int | None
    max_model_len: int | None
    plays_turns: bool
    identity: Mapping[str, Any]
    writer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExamples:
    """The samples of a report: finished ones by kind, failed ones by code, and rows side by side."""

    kinds: Mapping[str, Sequence[ReportSample]]
    flagged: Sequence[ReportSample]
    failures: Mapping[str, Sequence[ReportFailure]]
    not_selected: Sequence[ReportFailure]
    side_by_side: Sequence[SideBySide]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    """The numbers of a run that need no text of a sample: what the terminal shows, and the report too."""

    head: RunHead
    counts: RunCounts
    history: RunHistory
    attempts: Sequence[AttemptSummary]

    @property
    def prompt_bins(self) -> Bins:
        """Prompts by tokens. Those of conversations are sums, to which no limit applies."""
        limit = None if self.head.plays_turns else self.head.max_model_len
        return make_bins(self.counts.total.prompts.counts, limit)

    @property
    def answer_bins(self) -> Bins:
        """Answers by tokens, as the prompts."""
        limit = None if self.head.plays_turns else self.head.max_tokens
        return make_bins(self.counts.total.answers.counts, limit)

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens per second with a ready engine, over all attempts."""
        seconds = sum(attempt.generating_seconds for attempt in self.attempts)
        return sum(attempt.tokens for attempt in self.attempts) / seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(RunNumbers):
    """The content of a report."""

    texts: AnswerTexts
    parts: Sequence[ManifestPart]
    examples: RunExamples

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the page as JSON-serializable values."""
        head, whole = self.head, self.counts.total
        speed = self.tokens_per_second
        return {
            "directory": head.directory,
            "name": head.name,
            "fingerprint": head.fingerprint,
            "state": head.state,
            "rows": head.rows,
            "samples": head.samples,
            "failed": self.counts.failed,
            "not_selected": self.counts.not_selected,
            "failures": dict(self.counts.failures),
            **whole.to_dict(),
            "prompt_histogram": asdict(self.prompt_bins),
            "completion_histogram": asdict(self.answer_bins),
            "systems": {name: group.to_dict() for name, group in sorted(self.counts.groups.items())},
            "texts": self.texts.to_dict(),
            "tokens_per_second": None if speed is None else round(speed, 1),
            "attempts": [_attempt_to_dict(attempt) for attempt in self.attempts],
        }


def read_report(directory: Path) -> Report:
    """Return the report of the run in `directory`, complete or not. Only reads, takes no lock."""
    facts = read_facts(directory)
    shards, selection = list_samples(facts), ReportSelection()
    numbers = _read_numbers(facts, shards, selection.add)
    texts = read_texts(shards, numbers.counts.total.finished)
    manifest = read_manifest(facts.run_dir.manifest)
    fetcher = SampleFetcher(
        shards={samples.shard.number: samples for samples in shards}, locate=_open_places(facts)
    )
    return Report(
        head=numbers.head,
        counts=numbers.counts,
        history=numbers.history,
        attempts=numbers.attempts,
        texts=texts,
        parts=manifest.parts if manifest else (),
        examples=_fetch_examples(fetcher, selection, texts, has_several=len(numbers.counts.groups) > 1),
    )


def read_run_numbers(directory: Path) -> RunNumbers:
    """Return the numbers of the report of the run in `directory`, without reading any text."""
    facts = read_facts(directory)
    return _read_numbers(facts, list_samples(facts), lambda shard, numbers: None)


def _read_numbers(
    facts: RunFacts, shards: Sequence[ShardSamples], offer: Callable[[int, PartNumbers], None]
) -> RunNumbers:
    """Return the numbers of a run; `offer` gets those of every shard."""
    head = _read_head(facts, shards)
    counts = RunCounts(max_tokens=head.max_tokens)
    for samples in shards:
        numbers, codes = samples.read_numbers(), samples.read_codes()
        if numbers is not None:
            counts.add_finished(numbers)
            offer(samples.shard.number, numbers)
        if codes is not None:
            counts.add_failed(codes)
    events = [event for event in read_events(facts.run_dir.events) if {"kind", "time"} <= event.keys()]
    return RunNumbers(
        head=head,
        counts=counts,
        history=read_history(events, cuts_pauses=True),
        attempts=list_attempts(events, is_running=head.state == "running"),
    )


def _describe_source(plan: Mapping[str, Any]) -> str:
    more = len(plan.get("source_files", ())) - 1
    return f"{plan['source_file']} and {more} more" if more > 0 else str(plan["source_file"])


def _read_head(facts: RunFacts, shards: Sequence[ShardSamples]) -> RunHead:
    plan, identity = facts.plan, facts.plan["identity"]
    return RunHead(
        # The name, not the path: the same run gives the same page anywhere.
        directory=facts.run_dir.root.resolve().name,
        name=plan["name"],
        source_file=_describe_source(plan),
        fingerprint=plan["fingerprint"],
        state=find_state(facts.run_dir),
        rows=plan["scan"]["rows"],
        samples=facts.shards[-1].stop,
        systems=facts.grid.systems,
        max_tokens=find_limit(identity),
        max_model_len=identity["model"]["max_model_len"],
        plays_turns=facts.grid.plays_turns,
        identity=identity,
        writer=_find_writer(facts, shards),
    )


def find_state(run_dir: RunDir) -> State:
    """Return how far the run is: complete with a manifest, running while a process holds its lock."""
    if read_manifest(run_dir.manifest) is not None:
        return "complete"
    return "interrupted" if find_running(run_dir) is None else "running"


def _find_writer(facts: RunFacts, shards: Sequence[ShardSamples]) -> str:
    for one in shards:
        if isinstance(one, PublishedSamples):
            has_data = one.shard_entry.data is not None
            path = facts.run_dir.data_part(one.shard) if has_data else facts.run_dir.failed_part(one.shard)
            return read_part_facts(path).writer
    return ""


def _fetch_examples(
    fetcher: SampleFetcher, selection: ReportSelection, texts: AnswerTexts, *, has_several: bool
) -> RunExamples:
    failures = fetcher.fetch_failures()
    return RunExamples(
        kinds={kind: fetcher.fetch(chosen) for kind, chosen in selection.kinds.items()},
        flagged=[sample for mark, chosen in texts.examples.items() for sample in fetcher.fetch(chosen, mark)],
        not_selected=failures.pop(NOT_SELECTED, []),
        failures=failures,
        side_by_side=fetcher.compare(selection.rows) if has_several else [],
    )


def _open_places(facts: RunFacts) -> Callable[[int], str | None]:
    """Return what locates rows in the input. No place is known if the saved job is damaged."""
    try:
        return InputRows(facts.run_dir, facts.plan).locate
    except IntegrityError:
        return lambda index: None


def _attempt_to_dict(attempt: AttemptSummary) -> dict[str, Any]:
    rounded = {name: round(getattr(attempt, name), 1) for name in ("seconds", "generating_seconds")}
    return {**asdict(attempt), **rounded, "cached_share": round(attempt.cached_share, 3)}
