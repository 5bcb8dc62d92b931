"""What a job would do: its samples, shards and prompt tokens, without starting an engine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_high
from typing import Any

from synthia_batch.errors import SampleRefused
from synthia_batch.job.dotted import flatten
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.opening import scan_input
from synthia_batch.plan import make_samples, plan_shards
from synthia_batch.resolve import open_renderer
from synthia_batch.source import Scan, Source, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """Exact token counts over all prompts. `too_long` of them leave no room for an answer."""

    total: int
    shortest: int
    median: int
    longest: int
    too_long: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What `plan` prints."""

    directory: Path
    fingerprint: str
    model: str
    rows: int
    samples: int
    shards: int
    longest_output_tokens: int
    prompt_tokens: PromptTokens
    settings: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {**asdict(self), "directory": str(self.directory)}


def check_input(job: ResolvedJob) -> int:
    """Read the whole input; return its number of rows.

    Raises:
        InputRefused: It has faults.
    """
    return scan_input(job, open_source(job.input_path)).rows


def forecast_job(job: ResolvedJob) -> Forecast:
    """Return what `job` would do. Reads and tokenizes the whole input."""
    source = open_source(job.input_path)
    scan = scan_input(job, source)
    shards = plan_shards(scan.rows, job.plan.samples_per_row)
    tokens = _count_tokens(job, source, scan)
    return Forecast(
        directory=job.output,
        fingerprint=job.fingerprint,
        model=job.model.name,
        rows=scan.rows,
        samples=shards[-1].stop,
        shards=len(shards),
        longest_output_tokens=shards[-1].stop * job.engine.sampling.max_tokens,
        prompt_tokens=tokens,
        settings=_list_settings(job),
    )


def _count_tokens(job: ResolvedJob, source: Source, scan: Scan) -> PromptTokens:
    renderer = open_renderer(job.prompt)
    counts = []
    refused = 0
    for row in source.read_rows(scan, 0, scan.rows):
        for sample in make_samples(row, job.plan):
            if sample.index == 0:  # The samples of one prompt differ by their seeds only.
                try:
                    counts.append(len(renderer.render(sample.messages)))
                except SampleRefused:
                    refused += 1
    each = job.plan.num_samples
    return PromptTokens(
        total=sum(counts) * each,
        shortest=min(counts, default=0),
        median=median_high(counts) if counts else 0,
        longest=max(counts, default=0),
        too_long=(refused + sum(count >= job.engine.max_model_len for count in counts)) * each,
    )


def _list_settings(job: ResolvedJob) -> dict[str, dict[str, Any]]:
    flat = flatten(job.declared.model_dump(mode="json"))
    return {key: {"value": value, "origin": job.origins.get(key, "default")} for key, value in flat.items()}
