"""The samples of a report: which ones, always the same of the same run, and their escaped text."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.results.read.shards import ShardSamples
from synthia_batch.results.report.escape import Escaped, escape_text, make_visible
from synthia_batch.storage.parts.columns import PartCodes, PartNumbers

ROWS_SIDE_BY_SIDE = 3
MAX_SAMPLES = {"random": 10, "longest": 8, "truncated": 8}
"""By kind."""
ANSWER_BYTES = 10_000
TURN_BYTES = 3_000
MAX_TURNS = 12
"""Limits per sample, in escaped UTF-8: a page with eighty samples stays well below 2 MB."""
MAX_SYSTEMS = 6
EXAMPLES_PER_CODE = 3
MAX_FAILED = 12


@dataclass(frozen=True, slots=True, order=True)
class SelectedSample:
    """The sample at `position` of the shard `shard`. Ordered by `key`."""

    key: int
    shard: int
    position: int


@dataclass(slots=True, kw_only=True)
class SampleSelection:
    """The `limit` samples with the smallest keys, whatever the order of the offers."""

    limit: int
    chosen: list[SelectedSample] = field(default_factory=list)

    def offer(self, shard: int, keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> None:
        """Offer the samples at `positions` of a shard, each with its key."""
        if not self.limit:
            return
        best = np.argsort(keys, kind="stable")[: self.limit]
        pairs = zip(keys[best].tolist(), positions[best].tolist(), strict=True)
        offered = [SelectedSample(key, shard, position) for key, position in pairs]
        self.chosen = sorted([*self.chosen, *offered])[: self.limit]

    @property
    def by_shard(self) -> dict[int, list[int]]:
        """The selected positions by shard, both in order."""
        positions: dict[int, list[int]] = {}
        for sample in sorted(self.chosen, key=lambda sample: (sample.shard, sample.position)):
            positions.setdefault(sample.shard, []).append(sample.position)
        return positions


@dataclass(slots=True)
class ReportSelection:
    """The selected samples of each kind, and the `rows` whose answers are compared side by side."""

    kinds: dict[str, SampleSelection] = field(
        default_factory=lambda: {kind: SampleSelection(limit=limit) for kind, limit in MAX_SAMPLES.items()}
    )
    rows: SampleSelection = field(default_factory=lambda: SampleSelection(limit=ROWS_SIDE_BY_SIDE))

    def add(self, shard: int, numbers: PartNumbers) -> None:
        """Offer the finished samples of a shard to every selection."""
        keys = hash_samples(numbers)
        positions = np.arange(len(keys), dtype=np.int64)
        self.kinds["random"].offer(shard, keys, positions)
        # The longest have the smallest keys; the hash breaks ties.
        largest = np.uint64(2**32 - 1)
        lengths = np.minimum(numbers.completion_tokens.astype(np.uint64), largest)
        length_keys = ((largest - lengths) << np.uint64(32)) | (keys >> np.uint64(32))
        self.kinds["longest"].offer(shard, length_keys, positions)
        cut = np.array([reason == CUT_OFF for reason in numbers.reasons], dtype=bool)[numbers.reason]
        self.kinds["truncated"].offer(shard, keys[cut], positions[cut])
        # All samples of a row are in one shard, so row indexes serve as positions.
        rows = np.unique(numbers.row)
        self.rows.offer(shard, mix(rows.astype(np.uint64)), rows)


def hash_samples(numbers: PartNumbers) -> NDArray[np.uint64]:
    """Return a key for each sample that depends only on its row, system message and index."""
    systems = np.array([zlib.crc32(name.encode(errors="replace")) for name in numbers.systems], np.uint64)
    offset = systems[numbers.system] + numbers.index.astype(np.uint64) * np.uint64(0x1_0000_0001)
    return mix(mix(numbers.row.astype(np.uint64)) + offset)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 pseudorandom bits for each value: SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def choose_stride(samples: int, text_bytes: int, *, max_samples: int, max_bytes: int) -> int:
    """Return n such that reading every n-th shard stays near both limits."""
    return max(1, -(-samples // max_samples), -(-text_bytes // max_bytes))


def list_strided(stride: int, count: int) -> Sequence[int]:
    """Return every `stride`-th of `count` shards, starting in the middle of the first stride."""
    return range(min(stride // 2, count - 1), count, stride) if count else range(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTurn:
    """A message of a prompt."""

    role: str
    content: Escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSample:
    """A finished sample. `place` locates its full text; `turns` is None if its prompt is in no part yet.

    `source` is its row as file:line, empty if the input is gone. `note` is the reason for its selection if
    the heading does not give it.
    """

    title: str
    source: str
    place: str
    turns: Sequence[ReportTurn] | None
    hidden_turns: int
    answer: Escaped
    reasoning: Escaped | None
    system: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFailure:
    """A failed sample. `source` is its row as file:line, or the row's index."""

    title: str
    source: str
    code: str
    message: Escaped
    turns: Sequence[ReportTurn] | None
    hidden_turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The answers to one row under each system message. `source` is as in ReportSample."""

    title: str
    source: str
    question: Escaped | None
    samples: Sequence[ReportSample]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFetcher:
    """Reads selected samples. `shards` are by number; `locate` returns a row's file:line, None if unknown."""

    shards: Mapping[int, ShardSamples]
    locate: Callable[[int], str | None]

    def fetch(self, selection: SampleSelection, note: str = "") -> list[ReportSample]:
        """Return the selected samples, in the order of the dataset."""
        return [
            self._escape(self.shards[number], position, row, note)
            for number, positions in selection.by_shard.items()
            for position, row in zip(positions, self.shards[number].read_finished(positions), strict=True)
        ]

    def compare(self, rows: SampleSelection) -> list[SideBySide]:
        """Return the selected rows, each with the first answer under every system message."""
        return [
            self._compare(self.shards[number], row)
            for number, chosen in rows.by_shard.items()
            for row in chosen
        ]

    def fetch_failures(self) -> dict[str, list[ReportFailure]]:
        """Return the first failed samples of each code, about a dozen in all."""
        examples: dict[str, list[ReportFailure]] = {}
        for samples in self.shards.values():
            codes = samples.read_codes()
            if codes is None:
                continue
            positions = _find_examples(codes, {code: len(known) for code, known in examples.items()})
            for row in samples.read_failed(positions) if positions else ():
                if sum(map(len, examples.values())) < MAX_FAILED or row["code"] not in examples:
                    examples.setdefault(row["code"], []).append(self._escape_failure(row))
        return examples

    def _compare(self, samples: ShardSamples, row: int) -> SideBySide:
        numbers = samples.read_numbers()
        if numbers is None:
            raise ValueError(f"shard {samples.shard.number} has no finished samples")
        of_row = np.nonzero((numbers.row == row) & (numbers.index == 0))[0][:MAX_SYSTEMS].tolist()
        of_row = of_row or np.nonzero(numbers.row == row)[0][:1].tolist()
        rows = samples.read_finished(of_row)
        compared = [self._escape(samples, at, found, "") for at, found in zip(of_row, rows, strict=True)]
        turns = compared[0].turns or ()
        question = next((turn.content for turn in reversed(turns) if turn.role == "user"), None)
        return SideBySide(title=f"row {row}", source=compared[0].source, question=question, samples=compared)

    def _escape(
        self, samples: ShardSamples, position: int, row: Mapping[str, Any], note: str
    ) -> ReportSample:
        messages = row["messages"]
        # The last message is the answer.
        turns = None if messages is None else _escape_turns(messages[:-1])
        return ReportSample(
            title=_name(row),
            source=self._name_source(row),
            place=f"row {position} of {samples.place}, counted from 0",
            turns=turns,
            hidden_turns=max(0, len(messages or ()) - 1 - MAX_TURNS),
            answer=escape_text(row["response"], ANSWER_BYTES),
            reasoning=escape_text(row["reasoning"], TURN_BYTES) if row["reasoning"] else None,
            system=make_visible(row["system"]),
            finish_reason=make_visible(row["finish_reason"]),
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            note=note,
        )

    def _escape_failure(self, row: Mapping[str, Any]) -> ReportFailure:
        return ReportFailure(
            title=_name(row),
            source=self._name_source(row) or f"row {row['row_index']}",
            code=make_visible(row["code"]),
            message=escape_text(row["message"], TURN_BYTES),
            turns=None if row["messages"] is None else _escape_turns(row["messages"]),
            hidden_turns=max(0, len(row["messages"] or ()) - MAX_TURNS),
        )

    def _name_source(self, row: Mapping[str, Any]) -> str:
        """Return the sample's file:line: failed/ has it, and otherwise the input. Empty if unknown."""
        if row.get("source_line") is not None:
            return make_visible(f"{row['source_file']}:{row['source_line']}")
        return make_visible(self.locate(row["row_index"]) or "")


def _find_examples(codes: PartCodes, known: Mapping[str, int]) -> list[int]:
    positions: list[int] = []
    for index, code in enumerate(codes.codes):
        room = EXAMPLES_PER_CODE - known.get(code, 0)
        if room > 0:
            positions += np.nonzero(codes.code == index)[0][:room].tolist()
    return sorted(positions)


def _escape_turns(messages: Sequence[Mapping[str, str]]) -> list[ReportTurn]:
    share = TURN_BYTES * 3 // max(3, min(len(messages), MAX_TURNS))
    return [
        ReportTurn(role=make_visible(turn["role"]), content=escape_text(turn["content"], share))
        for turn in messages[-MAX_TURNS:]
    ]


def _name(row: Mapping[str, Any]) -> str:
    title = f"row {row['row_index']}, sample {row['sample_index']}"
    return title if not row.get("id") else f"{title}, id {make_visible(row['id'][:80])}"
