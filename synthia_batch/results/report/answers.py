"""What the texts of a run's answers show, by system message. Reads some hundreds of them at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.results.quality.measures import assess_answer, digest_answer
from synthia_batch.results.read.shards import ShardSamples
from synthia_batch.results.report.samples import SampleSubset, choose_stride, hash_samples, take_every
from synthia_batch.storage.parts.columns import PartNumbers

MOST_ANSWERS = 200_000
MOST_BYTES = 100_000_000
"""Beyond these, of samples and of the bytes of their parts, only every n-th shard's text is read. To tell
whether it repeats itself costs some 75 microseconds for 1,000 letters: either is about ten seconds."""
MOST_SHOWN = 4
MARKS = ("empty", "repetitive", "refusal", "duplicate")


@dataclass(slots=True, kw_only=True)
class AnswerTexts:
    """What the answers show: how many have each of MARKS, in `groups` by system message.

    `read` is how many texts were read, out of `finished`: all, or those of every n-th shard. A
    duplicate in a group came before in that group, in the `whole` anywhere. `commonest` is how often
    the answer that was given most often was given. `shown` are examples.
    """

    finished: int
    read: int = 0
    whole: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MARKS, 0))
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    read_by_group: dict[str, int] = field(default_factory=dict)
    shown: dict[str, SampleSubset] = field(
        default_factory=lambda: {mark: SampleSubset(most=MOST_SHOWN) for mark in MARKS}
    )
    commonest: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        by_system = {
            name: {"answers_read": self.read_by_group[name], **marks} for name, marks in self.groups.items()
        }
        return {
            "answers_read": self.read,
            "answers_finished": self.finished,
            **self.whole,
            "commonest_answer": self.commonest,
            "by_system": by_system,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assessed:
    """One shard's answers, an entry of each array per answer. `marks` has a column for each of MARKS."""

    shard: int
    numbers: PartNumbers
    marks: NDArray[np.bool_]
    digests: NDArray[np.uint64]


def read_texts(shards: Sequence[ShardSamples], finished: int) -> AnswerTexts:
    """Return what the answers of these shards show. Of each, some 20 bytes stay in memory until the end.

    Raises:
        IntegrityError: A part cannot be read.
    """
    size = sum(one.text_bytes for one in shards)
    stride = choose_stride(finished, size, most_samples=MOST_ANSWERS, most_bytes=MOST_BYTES)
    texts, known = AnswerTexts(finished=finished), _Known()
    for at in take_every(stride, len(shards)):
        assessed = _assess(shards[at])
        if assessed is not None:
            _add(texts, assessed)
            known.add(assessed)
    known.count_duplicates(texts)
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
        texts.whole[mark] += len(positions)
        texts.shown[mark].offer(assessed.shard, keys[positions], positions)
    for place, name in enumerate(numbers.systems):
        chosen = numbers.system == place
        group = texts.groups.setdefault(name, dict.fromkeys(MARKS, 0))
        texts.read_by_group[name] = texts.read_by_group.get(name, 0) + int(chosen.sum())
        for column, mark in enumerate(MARKS):
            group[mark] += int(marks[chosen, column].sum())


@dataclass(slots=True)
class _Known:
    """The digest of every answer that was read, and where it is. Empty answers are no duplicates."""

    digests: list[NDArray[np.uint64]] = field(default_factory=list)
    systems: list[NDArray[np.int64]] = field(default_factory=list)
    places: list[NDArray[np.int64]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, assessed: _Assessed) -> None:
        numbers = assessed.numbers
        self.names += [name for name in numbers.systems if name not in self.names]
        (full,) = np.nonzero(assessed.digests)
        translation = np.array([self.names.index(name) for name in numbers.systems], dtype=np.int64)
        self.digests.append(assessed.digests[full])
        self.systems.append(translation[numbers.system[full]])
        self.places.append((np.int64(assessed.shard) << np.int64(32)) | full)

    def count_duplicates(self, texts: AnswerTexts) -> None:
        if not self.digests:
            return
        digests, systems = np.concatenate(self.digests), np.concatenate(self.systems)
        _, first, counts = np.unique(digests, return_index=True, return_counts=True)
        texts.whole["duplicate"] = len(digests) - len(counts)
        texts.commonest = int(counts.max(initial=0))
        for place, name in enumerate(self.names):
            chosen = digests[systems == place]
            texts.groups[name]["duplicate"] = len(chosen) - len(np.unique(chosen))
        self._show_commonest(texts.shown["duplicate"], first, counts)

    def _show_commonest(
        self, shown: SampleSubset, first: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Show the answers that were given most often, each where it was first given."""
        places = np.concatenate(self.places)
        (several,) = np.nonzero(counts > 1)
        order = several[np.lexsort((first[several], -counts[several]))][: shown.most]
        for rank, at in enumerate(order.tolist()):
            place = int(places[first[at]])
            key = np.array([rank], dtype=np.uint64)
            shown.offer(place >> 32, key, np.array([place & 0xFFFFFFFF], dtype=np.int64))
