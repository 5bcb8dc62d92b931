"""Quality of a run's answers, by system message. Reads a few hundred answers at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.results.quality.measures import assess_answer, digest_answer
from synthia_batch.results.read.shards import ShardSamples
from synthia_batch.results.report.samples import SampleSelection, choose_stride, hash_samples, list_strided
from synthia_batch.storage.parts.columns import PartNumbers

MAX_ANSWERS = 200_000
MAX_BYTES = 100_000_000
"""Beyond either limit (samples, bytes of parts), only every n-th shard's text is read. Measuring repetition
takes about 75 microseconds per 1,000 characters: either limit is about ten seconds."""
MAX_EXAMPLES = 4
MARKS = ("empty", "repetitive", "refusal", "duplicate")


@dataclass(slots=True, kw_only=True)
class AnswerTexts:
    """Number of answers with each of MARKS, in `total` and by system message in `groups`.

    `read` of the `finished` answers were read: all, or those of every n-th shard. A duplicate in a group
    repeats an answer of that group; in `total`, any answer. `commonest` is the number of occurrences of the
    most common answer.
    """

    finished: int
    read: int = 0
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MARKS, 0))
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    read_by_group: dict[str, int] = field(default_factory=dict)
    examples: dict[str, SampleSelection] = field(
        default_factory=lambda: {mark: SampleSelection(limit=MAX_EXAMPLES) for mark in MARKS}
    )
    commonest: int = 0

    def to_dict(self) -> dict[str, Any]:
        by_system = {
            name: {"answers_read": self.read_by_group[name], **marks} for name, marks in self.groups.items()
        }
        return {
            "answers_read": self.read,
            "answers_finished": self.finished,
            **self.total,
            "commonest_answer": self.commonest,
            "by_system": by_system,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assessed:
    """One shard's answers, one array entry each. `marks` has a column for each of MARKS."""

    shard: int
    numbers: PartNumbers
    marks: NDArray[np.bool_]
    digests: NDArray[np.uint64]


def read_texts(shards: Sequence[ShardSamples], finished: int) -> AnswerTexts:
    """Return the quality of these shards' answers. Holds about 20 bytes per answer in memory."""
    size = sum(one.text_bytes for one in shards)
    stride = choose_stride(finished, size, max_samples=MAX_ANSWERS, max_bytes=MAX_BYTES)
    texts, index = AnswerTexts(finished=finished), _DigestIndex()
    for at in list_strided(stride, len(shards)):
        assessed = _assess(shards[at])
        if assessed is not None:
            _add(texts, assessed)
            index.add(assessed)
    index.count_duplicates(texts)
    return texts


def _assess(samples: ShardSamples) -> _Assessed | None:
    numbers = samples.read_numbers()
    if numbers is None:
        return None
    marks = np.zeros((len(numbers.row), len(MARKS)), dtype=np.bool_)
    digests = np.zeros(len(numbers.row), dtype=np.uint64)
    at = 0
    for batch in samples.read_answers():
        for text in batch:
            found = assess_answer(text)
            marks[at] = (found.is_empty, found.is_repetitive, found.is_refusal, False)
            digests[at] = 0 if found.is_empty else digest_answer(text)
            at += 1
    return _Assessed(shard=samples.shard.number, numbers=numbers, marks=marks, digests=digests)


def _add(texts: AnswerTexts, assessed: _Assessed) -> None:
    numbers, marks = assessed.numbers, assessed.marks
    texts.read += len(marks)
    keys = hash_samples(numbers)
    for column, mark in enumerate(MARKS):
        (positions,) = np.nonzero(marks[:, column])
        texts.total[mark] += len(positions)
        texts.examples[mark].offer(assessed.shard, keys[positions], positions)
    for system, name in enumerate(numbers.systems):
        chosen = numbers.system == system
        group = texts.groups.setdefault(name, dict.fromkeys(MARKS, 0))
        texts.read_by_group[name] = texts.read_by_group.get(name, 0) + int(chosen.sum())
        for column, mark in enumerate(MARKS):
            group[mark] += int(marks[chosen, column].sum())


@dataclass(slots=True)
class _DigestIndex:
    """Digests and positions of the answers read. Empty answers are not duplicates."""

    digests: list[NDArray[np.uint64]] = field(default_factory=list)
    systems: list[NDArray[np.int64]] = field(default_factory=list)
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, assessed: _Assessed) -> None:
        numbers = assessed.numbers
        self.names += [name for name in numbers.systems if name not in self.names]
        (full,) = np.nonzero(assessed.digests)
        translation = np.array([self.names.index(name) for name in numbers.systems], dtype=np.int64)
        self.digests.append(assessed.digests[full])
        self.systems.append(translation[numbers.system[full]])
        self.positions.append((np.int64(assessed.shard) << np.int64(32)) | full)

    def count_duplicates(self, texts: AnswerTexts) -> None:
        if not self.digests:
            return
        digests, systems = np.concatenate(self.digests), np.concatenate(self.systems)
        _, first, counts = np.unique(digests, return_index=True, return_counts=True)
        texts.total["duplicate"] = len(digests) - len(counts)
        texts.commonest = int(counts.max(initial=0))
        for system, name in enumerate(self.names):
            chosen = digests[systems == system]
            texts.groups[name]["duplicate"] = len(chosen) - len(np.unique(chosen))
        self._select_commonest(texts.examples["duplicate"], first, counts)

    def _select_commonest(
        self, selection: SampleSelection, first: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Select the most common answers, each at its first occurrence."""
        positions = np.concatenate(self.positions)
        (several,) = np.nonzero(counts > 1)
        order = several[np.lexsort((first[several], -counts[several]))][: selection.limit]
        for rank, at in enumerate(order.tolist()):
            position = int(positions[first[at]])
            key = np.array([rank], dtype=np.uint64)
            selection.offer(position >> 32, key, np.array([position & 0xFFFFFFFF], dtype=np.int64))
