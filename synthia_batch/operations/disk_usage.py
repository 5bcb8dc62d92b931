"""How many bytes a run will take on its disk, as a range, and whether there is room."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

TOKEN_BYTES = 4.5
"""Characters of a token of English prose, by the tokenizers of Llama and SmolLM2; other scripts have
fewer tokens' worth of characters, of more bytes each."""
SAMPLE_BYTES = 400
"""What a sample takes beside its texts: ids, names and the frame of its journal."""
SHORT_ANSWERS = 0.1
"""The lower end of the range: answers a tenth as long as they may be."""
COMPRESSION = 3
"""How far Parquet brings prose down, at its best; at its worst, not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """`least_bytes` to `most_bytes` for the dataset and what is open of it; `free_bytes` at `place`.

    `place` is the nearest directory above the output that is there.
    """

    least_bytes: int
    most_bytes: int
    free_bytes: int
    place: str

    @property
    def warning(self) -> str | None:
        """What to look to, None where there is room in any case."""
        advice = "free some, or name another place with -o DIR"
        if self.free_bytes < self.least_bytes:
            return f"the disk of {self.place} has too little room: {advice}"
        if self.free_bytes < self.most_bytes:
            return f"the disk of {self.place} has too little room if answers are long: {advice}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a run will hold: bytes of prompts, tokens of answers at their longest, samples and shards."""

    prompt_bytes: int
    longest_output_tokens: int
    samples: int
    shards: int


def estimate_disk_usage(texts: Texts, output: Path) -> DiskUsage:
    """Return what a run at `output` will take: its files, and the journals of two shards at a time.

    An answer stands in its row twice, in `response` and behind its prompt in `messages`.
    """
    place = find_existing(output)
    least = texts.prompt_bytes + 2 * SHORT_ANSWERS * texts.longest_output_tokens * TOKEN_BYTES
    most = texts.prompt_bytes + 2 * texts.longest_output_tokens * TOKEN_BYTES + texts.samples * SAMPLE_BYTES
    return DiskUsage(
        least_bytes=int(least / COMPRESSION),
        most_bytes=int(most * (1 + min(1.0, 2 / texts.shards))),
        free_bytes=shutil.disk_usage(place).free,
        place=os.fsencode(place).decode(errors="backslashreplace"),
    )


def find_existing(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that is there."""
    path = Path(os.path.abspath(path))
    return next((above for above in (path, *path.parents) if above.is_dir()), Path(path.anchor))


def spell_bytes(count: float) -> str:
    """Return `count` in the unit that makes it shortest, decimal: 3.4 GB."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
