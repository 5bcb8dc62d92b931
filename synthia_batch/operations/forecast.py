"""Forecast a job without starting an engine: its samples, shards, prompt tokens and disk usage."""

import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median_high
from typing import Any

import numpy

from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.types import Row, Sample
from synthia_batch.inputs import Scan, Source, open_files
from synthia_batch.job.plan import expand_row, limit_answer, plan_shards
from synthia_batch.job.resolved import UNKNOWN_LENGTH, ResolvedJob
from synthia_batch.models.prompts.tokenizer import Renderer, find_template_day, open_renderer
from synthia_batch.operations.disk_usage import (
    DiskUsage,
    RunSize,
    estimate_disk_usage,
    estimate_publication_memory,
)
from synthia_batch.operations.secret_use import SecretUse, list_secret_uses
from synthia_batch.operations.settings import list_settings, to_printable
from synthia_batch.runner.directory.plan import scan_input
from synthia_batch.runner.resolve.engine_spec import describe_job_cost

SHOWN_ROWS = 5
UNKNOWN_WITHOUT_MODEL = (
    "directory and fingerprint, which depend on the model's files",
    "prompts in tokens, and which are too long",
    "whether the engines fit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """Exact token counts of all prompts that the format can express; `refused` counts the others.

    `too_long` prompts leave no room for an answer. For multi-turn conversations only the first turns
    count: later prompts contain answers.
    """

    total: int
    shortest: int
    median: int
    longest: int
    refused: int
    too_long: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRows:
    """The number of rows with some property, and the locations of the first ones as file:line."""

    rows: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastFile:
    """One input file, and the number of rows used from it."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The content of `plan`. `files` are in reading order.

    `rows_too_long` have a prompt that leaves no room for an answer, `rows_repeated` the same prompt as
    an earlier row. `later_turns` counts the turns of all samples after the first, whose prompts are
    unknown. `prompt_unit` is the unit of `prompt_tokens`: bytes if only a server knows the tokens.
    `template_date` is the day that the chat template gets, None if it asks for none.
    `publication_bytes` is the memory that publishing a file, of `file_samples`, takes if answers are long.
    `longest_output_tokens` is the total if every answer has its maximum length. `strict_cost` is what
    strict determinism costs on a GPU, None if the job does not use it there. `settings` has, by dotted
    key, a `value` and its `origin`, and if the job runs with another value, `resolved` and `resolved_by`.
    `secrets` says which host gets which variable of the environment. `unknown` names what only a machine with
    the model's files can tell: `fingerprint` and `directory` are then of no meaning.
    """

    directory: Path
    fingerprint: str
    model: str
    files: tuple[ForecastFile, ...]
    rows: int
    samples: int
    shards: int
    later_turns: int
    longest_output_tokens: int
    prompt_tokens: PromptTokens
    prompt_unit: str
    rows_too_long: FoundRows
    rows_repeated: FoundRows
    disk: DiskUsage
    file_samples: int
    publication_bytes: int
    template_date: str | None
    strict_cost: str | None
    settings: Mapping[str, Mapping[str, Any]]
    secrets: tuple[SecretUse, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings to heed before starting the job."""
        return (self.disk.warning,) if self.disk.warning else ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "directory": to_printable(self.directory), "warnings": list(self.warnings)}


def check_input(job: ResolvedJob) -> int:
    """Read the whole input and return its number of rows."""
    return scan_input(job, open_files(job.inputs)).rows


def forecast_job(job: ResolvedJob) -> Forecast:
    """Return the forecast of `job`. Reads and tokenizes the whole input."""
    source = open_files(job.inputs)
    scan = scan_input(job, source)
    shards = plan_shards(scan.rows, job.plan.samples_per_row, job.plan.samples_per_file)
    prompts = _count_prompts(job, source, scan)
    candidates = job.declared.max_candidates if job.declared.accept is not None else 1
    longest_output_tokens = prompts.output_tokens * job.plan.num_samples * candidates
    size = RunSize(
        prompt_bytes=prompts.bytes * job.plan.num_samples,
        longest_output_tokens=longest_output_tokens,
        samples=shards[-1].stop,
        shards=len(shards),
    )
    file_samples = shards[0].samples
    return Forecast(
        directory=job.output,
        fingerprint=job.fingerprint,
        model=job.model.name,
        files=_list_files(job, scan),
        rows=scan.rows,
        samples=shards[-1].stop,
        shards=len(shards),
        later_turns=prompts.later_turns * job.plan.num_samples,
        longest_output_tokens=longest_output_tokens,
        prompt_tokens=_summarize(job, prompts),
        prompt_unit="bytes" if job.engine.is_elsewhere or job.lacks_model else "tokens",
        unknown=UNKNOWN_WITHOUT_MODEL if job.lacks_model else (),
        rows_too_long=FoundRows(rows=prompts.too_long, first=tuple(prompts.first_too_long)),
        rows_repeated=_find_repeated(source, scan, prompts),
        disk=estimate_disk_usage(size, job.output),
        file_samples=file_samples,
        publication_bytes=estimate_publication_memory(size, file_samples),
        template_date=find_template_day(job.prompt),
        strict_cost=describe_job_cost(job.engine),
        settings=list_settings(job),
        secrets=list_secret_uses(job, os.environ),
    )


def _list_files(job: ResolvedJob, scan: Scan) -> tuple[ForecastFile, ...]:
    rows = [file.rows for file in scan.files] or [scan.rows]
    names = [os.fsencode(file.shown).decode(errors="backslashreplace") for file in job.inputs]
    return tuple(ForecastFile(name=name, rows=count) for name, count in zip(names, rows, strict=True))


@dataclass(kw_only=True)
class _Prompts:
    """Token counts, one per prompt; the samples of a prompt share it.

    `hashes` are those of the rows' texts, `bytes` is the size of the prompts, `output_tokens` the total
    for answers of maximum length.
    """

    counts: "array[int]" = field(default_factory=lambda: array("l"))
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    refused: int = 0
    later_turns: int = 0
    bytes: int = 0
    output_tokens: int = 0
    too_long: int = 0
    first_too_long: list[str] = field(default_factory=list)

    def add(
        self, row: Row, samples: Sequence[Sample], renderer: Renderer, max_tokens: int, longest: int
    ) -> bool:
        """Count the prompts of a row, one per system message; return whether any reaches `longest`."""
        self.hashes.append(hash((row.messages, row.system, row.follow_ups)))
        before = len(self.counts)
        if row.fault is not None:
            self.refused += len(samples)
            return False
        most = limit_answer(row, max_tokens)
        for sample in samples:
            try:
                count = len(renderer.render(sample.messages, row.tools, row.template_kwargs))
            except SampleRefused:
                self.refused += 1
                continue
            self.counts.append(count)
            self.output_tokens += min(max(0, longest - count), most)
            self.output_tokens += len(row.follow_ups) * min(longest, most)
            self.later_turns += len(row.follow_ups)
            self.bytes += sum(len(message.content.encode()) for message in sample.messages)
        return any(count >= longest for count in self.counts[before:])


def _find_length(job: ResolvedJob) -> int:
    """Return the maximum length of a prompt and its answer; bytes are not compared with one in tokens."""
    return UNKNOWN_LENGTH if job.lacks_model else job.engine.max_model_len


def _count_prompts(job: ResolvedJob, source: Source, scan: Scan) -> _Prompts:
    renderer = open_renderer(job.prompt)
    max_tokens, longest = job.engine.sampling.max_tokens, _find_length(job)
    prompts = _Prompts()
    for row in source.read_rows(scan, 0, scan.rows):
        # The samples of one prompt differ only in their seeds.
        samples = [sample for sample in expand_row(row, job.plan) if sample.index == 0]
        if prompts.add(row, samples, renderer, max_tokens, longest):
            prompts.too_long += 1
            if len(prompts.first_too_long) < SHOWN_ROWS:
                prompts.first_too_long.append(_locate(source, row))
    return prompts


def _find_repeated(source: Source, scan: Scan, prompts: _Prompts) -> FoundRows:
    hashes = numpy.frombuffer(prompts.hashes, dtype=numpy.int64)
    _, first, which = numpy.unique(hashes, return_index=True, return_inverse=True)
    repeated = numpy.flatnonzero(first[which] != numpy.arange(len(hashes)))
    shown = [(int(index), int(first[which[index]])) for index in repeated[:SHOWN_ROWS]]
    return FoundRows(rows=len(repeated), first=tuple(_locate_repeated(source, scan, *pair) for pair in shown))


def _locate_repeated(source: Source, scan: Scan, index: int, earlier: int) -> str:
    row, before = (next(iter(source.read_rows(scan, n, n + 1))) for n in (index, earlier))
    return f"{_locate(source, row)} (as {before.line})"


def _locate(source: Source, row: Row) -> str:
    return os.fsencode(source.locate(row)).decode(errors="backslashreplace")


def _summarize(job: ResolvedJob, prompts: _Prompts) -> PromptTokens:
    counts, each = prompts.counts, job.plan.num_samples
    return PromptTokens(
        total=sum(counts) * each,
        shortest=min(counts, default=0),
        median=median_high(counts) if counts else 0,
        longest=max(counts, default=0),
        refused=prompts.refused * each,
        too_long=sum(count >= _find_length(job) for count in counts) * each,
    )
