"""The dataset card: README.md of a run directory, with the head that `datasets` and the Hub read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthia_batch.store.atomic import publish_bytes
from synthia_batch.store.manifest import Manifest
from synthia_batch.store.run_dir import RunDir

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
"""The Hub's size categories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card tells beside the counts. `systems` and `system_digests` are by name."""

    name: str
    model: str
    source: str
    systems: Mapping[str, str]
    system_digests: Mapping[str, str]
    sampling: Mapping[str, Any]
    determinism: str
    seed: int


def write_card(run_dir: RunDir, facts: CardFacts, manifest: Manifest) -> None:
    """Write the card of a run whose parts are all published. Same run, same bytes.

    Raises:
        StorageFailed: It could not be written.
    """
    publish_bytes(run_dir.readme, describe_dataset(facts, manifest).encode())


def describe_dataset(facts: CardFacts, manifest: Manifest) -> str:
    """Return the text of the card."""
    return "\n".join([*_describe_head(manifest), *_describe_body(facts, manifest)]) + "\n"


def _describe_head(manifest: Manifest) -> list[str]:
    size = next((label for bound, label in SIZES if manifest.finished < bound), "n>100M")
    head = [
        "---",
        "task_categories: [text-generation]",
        f"size_categories: ['{size}']",
        "tags: [synthetic]",
        "configs:",
    ]
    configs = [("default", "train", "data/train-*.parquet", manifest.finished)]
    configs += [("failed", "failed", "failed/failed-*.parquet", manifest.failed)]
    for config, split, pattern, rows in configs:
        if rows:
            head += [
                f"- config_name: {config}",
                "  data_files:",
                f"  - split: {split}",
                f"    path: {pattern}",
            ]
    return [*head, "---"]


def _describe_body(facts: CardFacts, manifest: Manifest) -> list[str]:
    sampling = ", ".join(
        f"{name} {value}" for name, value in facts.sampling.items() if value not in ([], None)
    )
    lines = [
        f"# {facts.name}",
        "",
        f"{manifest.finished} samples that {facts.model} made from {manifest.rows} rows of {facts.source}; "
        f"{manifest.failed} could not be made. Written by synthia-batch.",
        "",
        f"- sampling: {sampling}",
        f"- seed {facts.seed}, determinism {facts.determinism}, fingerprint {manifest.fingerprint}",
        "",
        "| system message | text | BLAKE3 |",
        "|---|---|---|",
    ]
    for name, text in facts.systems.items():
        lines.append(f"| {name} | {_quote_cell(text)} | {facts.system_digests[name]} |")
    lines += ["", "```python", "import datasets", "dataset = datasets.load_dataset(DIRECTORY)", "```"]
    if manifest.failed:
        lines.append("")
        lines.append('The samples that failed: `datasets.load_dataset(DIRECTORY, "failed")`.')
    return lines


def _quote_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") or "(none)"
