"""The dataset card: README.md of a run directory, with the YAML header for `datasets` and the Hub.

The card is part of the output's bytes, whatever the history of the run: it describes the files and the
job's identity, never times, hosts or attempts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.digest import digest_json
from synthia_batch.core.formatting import format_bytes
from synthia_batch.job.dotted import flatten
from synthia_batch.results.read.counts import RunCounts, SystemCounts, find_limit
from synthia_batch.results.report.escape import make_visible
from synthia_batch.results.report.verdict import format_share
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import Manifest
from synthia_batch.storage.parts.columns import PartFacts, read_codes, read_numbers, read_part_facts
from synthia_batch.storage.parts.schema import DATA_COLUMNS

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
"""The Hub's size categories."""
_STATISTICS = (
    "system message", "samples", "cut off", "prompt tokens", "answer tokens", "mean", "5%", "median", "95%",
    "longest",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """The name of the model's licence, and the source of that information."""

    name: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Content of a card beside the counts. `systems` are texts by name; `command` starts such a job.

    `licence` is the model's, None if unknown.
    """

    name: str
    model: str
    source: str
    command: str
    systems: Mapping[str, str]
    identity: Mapping[str, Any]
    licence: Licence | None

    @property
    def fate(self) -> str:
        """What became of the samples in failed/."""
        return "were not kept" if "select" in self.identity else "could not be made"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardData:
    """Content of the published files. `facts` describe the first data part, None if there is none."""

    counts: RunCounts
    facts: PartFacts | None


def write_card(run_dir: RunDir, facts: CardFacts, manifest: Manifest) -> None:
    """Write the card of a run whose parts are all published. The same run gives the same bytes."""
    text = describe_dataset(facts, manifest, read_card_data(run_dir, facts, manifest))
    publish_bytes(run_dir.readme, text.encode(errors="replace"))


def read_card_data(run_dir: RunDir, facts: CardFacts, manifest: Manifest) -> CardData:
    """Return the counts of the parts. Reads small columns, one part in memory at a time."""
    counts = RunCounts(max_tokens=find_limit(facts.identity))
    first: PartFacts | None = None
    for part in manifest.parts:
        path = run_dir.root / part.path
        if _is_data(part.path):
            counts.add_finished(read_numbers(path))
            first = first or read_part_facts(path)
        else:
            counts.add_failed(read_codes(path))
    return CardData(counts=counts, facts=first)


def describe_dataset(facts: CardFacts, manifest: Manifest, data: CardData) -> str:
    """Return the text of the card."""
    sections = (
        _describe_head(manifest),
        _describe_contents(facts, manifest),
        _describe_statistics(facts, data.counts),
        _describe_columns(facts, data.facts),
        _describe_loading(facts, manifest),
        _describe_generation(facts, manifest),
        _describe_licence(facts),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _describe_head(manifest: Manifest) -> Iterator[str]:
    size = next((label for bound, label in SIZES if manifest.finished < bound), "n>100M")
    yield from ("---", "task_categories: [text-generation]", f"size_categories: ['{size}']")
    yield from ("tags: [synthetic]", "configs:")
    configs = [("default", "train", "data/train-*.parquet", manifest.finished)]
    configs += [("failed", "failed", "failed/failed-*.parquet", manifest.failed)]
    for config, split, pattern, rows in configs:
        if rows:
            yield from (f"- config_name: {config}", f"  description: {_identify(manifest, config)}")
            yield from ("  data_files:", f"  - split: {split}", f"    path: {pattern}")
    yield "---"


def _identify(manifest: Manifest, config: str) -> str:
    """Return a text that differs wherever the files of `config` do.

    The `datasets` library (5.2) caches a local directory by its last name and by these configs, not by
    the files: without such a text it returns the rows of another run, or those from before a retry. A
    config's description is the one field of it that is free text.
    """
    parts = [
        [part.path, part.sha256] for part in manifest.parts if _is_data(part.path) == (config == "default")
    ]
    return f"content {digest_json(parts)[:32]}"


def _describe_contents(facts: CardFacts, manifest: Manifest) -> Iterator[str]:
    yield f"# {_escape(facts.name)}"
    yield ""
    yield (
        f"{manifest.finished:,} samples that {_escape(facts.model)} made from {manifest.rows:,} rows of "
        f"{_escape(facts.source)}; {manifest.failed:,} {facts.fate}. Written by synthia-batch."
    )
    yield ""
    yield "| config | files | rows | size |"
    yield "|---|---|---|---|"
    for config, is_data in (("default", True), ("failed", False)):
        parts = [part for part in manifest.parts if _is_data(part.path) == is_data]
        if parts:
            size = sum(part.bytes for part in parts)
            rows = sum(part.rows for part in parts)
            yield f"| {config} | {len(parts):,} | {rows:,} | {format_bytes(size)} |"


def _describe_statistics(facts: CardFacts, counts: RunCounts) -> Iterator[str]:
    whole = counts.total
    if whole.finished:
        yield from ("## Statistics", "")
        yield f"| {' | '.join(_STATISTICS)} |"
        yield "|---" * len(_STATISTICS) + "|"
        for name, group in sorted(counts.groups.items()):
            yield _describe_group(_escape(name), group)
        if len(counts.groups) > 1:
            yield _describe_group("all", whole)
        reasons = ", ".join(f"{_code(name)} {count:,}" for name, count in sorted(whole.reasons.items()))
        yield from ("", f"The answers' lengths are in tokens. They ended by: {reasons}.")
    if counts.codes:
        codes = ", ".join(f"{_code(code)} {count:,}" for code, count in counts.codes_by_count.items())
        what = "was not kept" if "select" in facts.identity else "could not be made"
        yield from ("", f"What {what}, by code: {codes}.")


def _describe_group(name: str, group: SystemCounts) -> str:
    lengths = group.answers.to_dict()
    numbers = [f"{lengths[key]:,}" for key in ("tokens", "mean", "p5", "median", "p95", "longest")]
    share = f"{group.truncated:,} ({format_share(group.truncated, group.finished)})"
    cells = [name, f"{group.finished:,}", share, f"{group.prompts.tokens:,}", *numbers]
    return f"| {' | '.join(cells)} |"


def _describe_columns(facts: CardFacts, part: PartFacts | None) -> Iterator[str]:
    if part is None:
        return
    yield from ("## Columns", "", "| column | type | what it is |", "|---|---|---|")
    meanings = {column.name: column.meaning for column in DATA_COLUMNS}
    for name, value in facts.identity.get("select", {}).get("combine", {}).items():
        if isinstance(value, Mapping):
            ((how, text),) = value.items()
            meanings[name] = f"{how} of {_code(text)}, of several samples"
    for name, kind in part.columns:
        yield f"| {_escape(name)} | {_code(kind)} | {meanings.get(name, 'kept from the input')} |"


def _describe_loading(facts: CardFacts, manifest: Manifest) -> Iterator[str]:
    yield from ("## Loading", "", "In this directory; elsewhere, with its path in front:")
    if manifest.finished:
        yield from _fence(
            "import datasets, os", 'dataset = datasets.load_dataset(os.getcwd(), split="train")'
        )
        yield from _fence("import pandas", 'frame = pandas.read_parquet("data")')
        yield from _fence("import polars", 'frame = polars.read_parquet("data/*.parquet")')
        yield from _fence("import duckdb", "relation = duckdb.sql(\"from 'data/*.parquet'\")")
    if manifest.failed:
        yield from ("", f"The samples that {facts.fate}, each with its code and message:")
        yield from _fence(
            "import datasets, os",
            'failed = datasets.load_dataset(os.getcwd(), "failed", split="failed")',
        )


def _describe_generation(facts: CardFacts, manifest: Manifest) -> Iterator[str]:
    identity = facts.identity
    yield from ("## How it was made", "", "```sh", _escape_line(facts.command), "```", "")
    yield f"- model: {_list_values(identity['model'])}"
    yield f"- engine: {_list_values(identity['engine'])}"
    yield f"- sampling: {_list_values(identity['sampling'])}"
    yield f"- seed {identity['seed']}, {identity['num_samples']} samples per row and system message"
    yield f"- prompt format: {identity['prompt']['format']}"
    if "select" in identity:
        yield f"- selected by: {_list_values(identity['select'])}"
    if "flags" in identity:
        yield f"- flags: {_list_values(identity['flags'])}"
    yield f"- determinism {identity['determinism']}, fingerprint `{manifest.fingerprint}`"
    yield from ("", "| system message | text | BLAKE3 |", "|---|---|---|")
    for name, digest in identity["system"]:
        yield f"| {_escape(name)} | {_escape(facts.systems[name]) or '(none)'} | `{digest}` |"


def _describe_licence(facts: CardFacts) -> Iterator[str]:
    yield from ("## Licence", "")
    if facts.licence is None:
        yield f"The licence of {_escape(facts.model)} is not known here: look at where it came from."
    else:
        name, source = _code(facts.licence.name), _escape(facts.licence.source)
        yield f"{_escape(facts.model)} is under {name} (source: {source})."
    yield f"What that means for answers, and the licence of {_escape(facts.source)}, is not known here."


def _fence(*lines: str) -> Iterator[str]:
    yield from ("", "```python", *lines, "```")


def _is_data(path: str) -> bool:
    return Path(path).parts[0] == "data"


def _list_values(values: Mapping[str, Any]) -> str:
    """Return the set values as `name value` pairs."""
    present = {
        name: value for name, value in flatten(values).items() if value not in (None, False, "", [], {})
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in present.items()}
    return ", ".join(f"{_escape(name)} {_escape(value)}" for name, value in texts.items())


def _escape_line(text: str) -> str:
    """Return untrusted text as one line that cannot end its fenced block."""
    return make_visible(text).replace("\n", " ").replace("`", "'")


def _code(text: str) -> str:
    """Return untrusted text as code in a line or a cell."""
    return f"`{_escape_line(text)}`".replace("|", "\\|")


def _escape(text: str) -> str:
    """Return untrusted text that stays in its cell and is not markup."""
    visible = make_visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for mark in ("|", "`", "*", "[", "]"):
        visible = visible.replace(mark, f"\\{mark}")
    return visible.replace("\n", "<br>")
