"""The dataset card: README.md of a run directory, with the head that `datasets` and the Hub read.

It is part of the output's bytes: whatever the history of a run, and wherever it ended, its card is the
same. So it tells what is in the files and in the job's identity, and nothing of time, hosts or attempts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.formatting import format_bytes
from synthia_batch.job.dotted import flatten
from synthia_batch.results.read.counts import Group, Tally, find_limit
from synthia_batch.results.report.escape import make_visible
from synthia_batch.results.report.verdict import spell_share
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
    """A licence by name, and who says that it is the model's."""

    name: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card tells beside the counts. `systems` are texts by name. `command` makes such a job.

    `licence` is the model's, None where nobody here knows it.
    """

    name: str
    model: str
    source: str
    command: str
    systems: Mapping[str, str]
    identity: Mapping[str, Any]
    licence: Licence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardData:
    """What the published files hold. `facts` are those of the first data part, None without any."""

    tally: Tally
    facts: PartFacts | None


def write_card(run_dir: RunDir, facts: CardFacts, manifest: Manifest) -> None:
    """Write the card of a run whose parts are all published. Same run, same bytes.

    Raises:
        IntegrityError: A part cannot be read.
        StorageFailed: It could not be written.
    """
    text = describe_dataset(facts, manifest, read_card_data(run_dir, facts, manifest))
    publish_bytes(run_dir.readme, text.encode(errors="replace"))


def read_card_data(run_dir: RunDir, facts: CardFacts, manifest: Manifest) -> CardData:
    """Return what the parts hold, read by their small columns, one part in memory at a time.

    Raises:
        IntegrityError: A part cannot be read.
    """
    tally = Tally(max_tokens=find_limit(facts.identity))
    first: PartFacts | None = None
    for part in manifest.parts:
        path = run_dir.root / part.path
        if _is_data(part.path):
            tally.add_made(read_numbers(path))
            first = first or read_part_facts(path)
        else:
            tally.add_failed(read_codes(path))
    return CardData(tally=tally, facts=first)


def describe_dataset(facts: CardFacts, manifest: Manifest, data: CardData) -> str:
    """Return the text of the card."""
    sections = (
        _describe_head(manifest),
        _describe_contents(facts, manifest),
        _describe_statistics(data.tally),
        _describe_columns(data.facts),
        _describe_loading(manifest),
        _describe_making(facts, manifest),
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
            yield from (f"- config_name: {config}", "  data_files:", f"  - split: {split}")
            yield f"    path: {pattern}"
    yield "---"


def _describe_contents(facts: CardFacts, manifest: Manifest) -> Iterator[str]:
    yield f"# {_spell(facts.name)}"
    yield ""
    yield (
        f"{manifest.finished:,} samples that {_spell(facts.model)} made from {manifest.rows:,} rows of "
        f"{_spell(facts.source)}; {manifest.failed:,} could not be made. Written by synthia-batch."
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


def _describe_statistics(tally: Tally) -> Iterator[str]:
    whole = tally.whole
    if whole.finished:
        yield from ("## Statistics", "")
        yield f"| {' | '.join(_STATISTICS)} |"
        yield "|---" * len(_STATISTICS) + "|"
        for name, group in sorted(tally.groups.items()):
            yield _describe_group(_spell(name), group)
        if len(tally.groups) > 1:
            yield _describe_group("all", whole)
        reasons = ", ".join(f"{_code(name)} {count:,}" for name, count in sorted(whole.reasons.items()))
        yield from ("", f"The answers' lengths are in tokens. They ended by: {reasons}.")
    if tally.failures:
        failures = ", ".join(f"{_code(code)} {count:,}" for code, count in tally.failures_by_number.items())
        yield from ("", f"What could not be made, by code: {failures}.")


def _describe_group(name: str, group: Group) -> str:
    lengths = group.answers.to_dict()
    numbers = [f"{lengths[key]:,}" for key in ("tokens", "mean", "p5", "median", "p95", "longest")]
    share = f"{group.truncated:,} ({spell_share(group.truncated, group.finished)})"
    cells = [name, f"{group.finished:,}", share, f"{group.prompts.tokens:,}", *numbers]
    return f"| {' | '.join(cells)} |"


def _describe_columns(facts: PartFacts | None) -> Iterator[str]:
    if facts is None:
        return
    yield from ("## Columns", "", "| column | type | what it is |", "|---|---|---|")
    meanings = {column.name: column.meaning for column in DATA_COLUMNS}
    for name, kind in facts.columns:
        yield f"| {_spell(name)} | {_code(kind)} | {meanings.get(name, 'kept from the input')} |"


def _describe_loading(manifest: Manifest) -> Iterator[str]:
    yield from ("## Loading", "", "In this directory; elsewhere, with its path in front:")
    if manifest.finished:
        yield from _fence(
            "import datasets, os", 'dataset = datasets.load_dataset(os.getcwd(), split="train")'
        )
        yield from _fence("import pandas", 'frame = pandas.read_parquet("data")')
        yield from _fence("import polars", 'frame = polars.read_parquet("data/*.parquet")')
        yield from _fence("import duckdb", "relation = duckdb.sql(\"from 'data/*.parquet'\")")
    if manifest.failed:
        yield from ("", "The samples that could not be made, each with its code and message:")
        yield from _fence(
            "import datasets, os",
            'failed = datasets.load_dataset(os.getcwd(), "failed", split="failed")',
        )


def _describe_making(facts: CardFacts, manifest: Manifest) -> Iterator[str]:
    identity = facts.identity
    yield from ("## How it was made", "", "```sh", _spell_line(facts.command), "```", "")
    yield f"- model: {_list_values(identity['model'])}"
    yield f"- engine: {_list_values(identity['engine'])}"
    yield f"- sampling: {_list_values(identity['sampling'])}"
    yield f"- seed {identity['seed']}, {identity['num_samples']} samples per row and system message"
    yield f"- prompt format: {identity['prompt']['format']}"
    if "flags" in identity:
        yield f"- flags: {_list_values(identity['flags'])}"
    yield f"- determinism {identity['determinism']}, fingerprint `{manifest.fingerprint}`"
    yield from ("", "| system message | text | BLAKE3 |", "|---|---|---|")
    for name, digest in identity["system"]:
        yield f"| {_spell(name)} | {_spell(facts.systems[name]) or '(none)'} | `{digest}` |"


def _describe_licence(facts: CardFacts) -> Iterator[str]:
    yield from ("## Licence", "")
    if facts.licence is None:
        yield f"The licence of {_spell(facts.model)} is not known here: look at where it came from."
    else:
        name, source = _code(facts.licence.name), _spell(facts.licence.source)
        yield f"{_spell(facts.model)} is under {name} (source: {source})."
    yield f"What that means for answers, and the licence of {_spell(facts.source)}, is not known here."


def _fence(*lines: str) -> Iterator[str]:
    yield from ("", "```python", *lines, "```")


def _is_data(path: str) -> bool:
    return Path(path).parts[0] == "data"


def _list_values(values: Mapping[str, Any]) -> str:
    """Return what is said of one thing, without what is not there."""
    said = {name: value for name, value in flatten(values).items() if value not in (None, False, "", [], {})}
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
    return ", ".join(f"{_spell(name)} {_spell(value)}" for name, value in words.items())


def _spell_line(text: str) -> str:
    """Return a stranger's text as one line of a fenced block, which it does not end."""
    return make_visible(text).replace("\n", " ").replace("`", "'")


def _code(text: str) -> str:
    """Return a stranger's text as code in a line or a cell."""
    return f"`{_spell_line(text)}`".replace("|", "\\|")


def _spell(text: str) -> str:
    """Return a stranger's text so that it stays in its cell and is no markup."""
    visible = make_visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for mark in ("|", "`", "*", "[", "]"):
        visible = visible.replace(mark, f"\\{mark}")
    return visible.replace("\n", "<br>")
