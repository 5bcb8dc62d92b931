"""Estimate how much disk space a run will need, and check that it is available."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.storage.layout import ROW_GROUP_ROWS

TOKEN_BYTES = 4.5
"""Characters per token of English prose, by the tokenizers of Llama and SmolLM2. Other scripts have fewer
characters per token, of more bytes each."""
SAMPLE_BYTES = 400
"""Per sample, besides its texts: ids, names and its journal frame."""
SHORT_ANSWERS = 0.1
"""For the lower bound: answers have a tenth of their maximum length."""
COMPRESSION = 3
"""Parquet's best compression ratio for prose; at worst it is 1."""


PROCESS_BYTES = 250e6
"""Memory of the driver before it publishes anything, with the answers that it keeps."""
INDEX_BYTES = 250
"""Memory of a sample in the index of a journal."""
ROW_BYTES = 1500
"""Memory of a sample in the row group that is being encoded, besides its texts."""
ROW_COPIES = 5
"""Copies of a row group in memory: as read, as columns, as pages. Measured with 100,000 samples of 4 kB each:
tests/runner/test_samples_per_file.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """Range of bytes needed for the dataset and its open journals, and `free_bytes` at `place`.

    `place` is the nearest existing directory at or above the output.
    """

    least_bytes: int
    most_bytes: int
    free_bytes: int
    place: str

    @property
    def warning(self) -> str | None:
        """A warning, None if there is enough space in any case."""
        advice = "free space, or use another directory with -o DIR"
        if self.free_bytes < self.least_bytes:
            return f"not enough disk space at {self.place}; {advice}"
        if self.free_bytes < self.most_bytes:
            return f"not enough disk space at {self.place} if answers are long; {advice}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSize:
    """Size of a run: bytes of prompts, tokens of answers of maximum length, samples and shards."""

    prompt_bytes: int
    longest_output_tokens: int
    samples: int
    shards: int


def estimate_disk_usage(size: RunSize, output: Path) -> DiskUsage:
    """Return the disk usage of a run at `output`: its files, and the journals of two shards at a time.

    Each answer is stored twice in its row: in `response`, and after its prompt in `messages`.
    """
    place = find_existing(output)
    least = size.prompt_bytes + 2 * SHORT_ANSWERS * size.longest_output_tokens * TOKEN_BYTES
    most = size.prompt_bytes + 2 * size.longest_output_tokens * TOKEN_BYTES + size.samples * SAMPLE_BYTES
    return DiskUsage(
        least_bytes=int(least / COMPRESSION),
        most_bytes=int(most * (1 + min(1.0, 2 / size.shards))),
        free_bytes=shutil.disk_usage(place).free,
        place=os.fsencode(place).decode(errors="backslashreplace"),
    )


def estimate_publication_memory(size: RunSize, file_samples: int) -> int:
    """Return the bytes of memory that publishing a file of `file_samples` takes at most.

    That is a row group a few times over, and the whole file, which is half the size of its texts.
    """
    text_bytes = (size.prompt_bytes + 2 * size.longest_output_tokens * TOKEN_BYTES) / max(1, size.samples)
    group = min(file_samples, ROW_GROUP_ROWS) * (text_bytes + ROW_BYTES) * ROW_COPIES
    return int(PROCESS_BYTES + group + file_samples * (INDEX_BYTES + text_bytes / 2))


def find_existing(path: Path) -> Path:
    """Return `path`, or the nearest existing directory above it."""
    path = Path(os.path.abspath(path))
    return next((above for above in (path, *path.parents) if above.is_dir()), Path(path.anchor))
