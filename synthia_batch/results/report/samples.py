"""Which samples a report shows: always the same ones of the same run, whatever order they are met in.

The samples that a report shows, fetched and made fit to be shown.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.results.read.shards import ShardSamples
from synthia_batch.results.report.escape import Escaped, escape_text, make_visible
from synthia_batch.storage.parts.columns import PartCodes, PartNumbers

ROWS_SIDE_BY_SIDE = 3
MOST = {"random": 10, "longest": 8, "truncated": 8}
"""How many samples of each kind are shown."""


@dataclass(frozen=True, slots=True, order=True)
class Pick:
    """A sample to show: the one at `position` of the shard `shard`. The least `key` goes first."""

    key: int
    shard: int
    position: int


@dataclass(slots=True, kw_only=True)
class SampleSubset:
    """The `most` picks with the least keys among all that were offered."""

    most: int
    chosen: list[Pick] = field(default_factory=list)

    def offer(self, shard: int, keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> None:
        """Have the samples at `positions` of a shard considered, each with its key."""
        if not self.most:
            return
        few = np.argsort(keys, kind="stable")[: self.most]
        pairs = zip(keys[few].tolist(), positions[few].tolist(), strict=True)
        self.chosen = sorted([*self.chosen, *(Pick(key, shard, at) for key, at in pairs)])[: self.most]

    @property
    def by_shard(self) -> dict[int, list[int]]:
        """The positions that were chosen, by their shard, both in order."""
        places: dict[int, list[int]] = {}
        for pick in sorted(self.chosen, key=lambda pick: (pick.shard, pick.position)):
            places.setdefault(pick.shard, []).append(pick.position)
        return places


@dataclass(slots=True)
class Choice:
    """The samples of each kind, and the `rows` whose answers are shown side by side."""

    kinds: dict[str, SampleSubset] = field(
        default_factory=lambda: {kind: SampleSubset(most=most) for kind, most in MOST.items()}
    )
    rows: SampleSubset = field(default_factory=lambda: SampleSubset(most=ROWS_SIDE_BY_SIDE))

    def consider(self, shard: int, numbers: PartNumbers) -> None:
        """Choose among the finished samples of a shard, too."""
        keys = hash_samples(numbers)
        everything = np.arange(len(keys), dtype=np.int64)
        self.kinds["random"].offer(shard, keys, everything)
        # The longest have the least key; among equals the hash decides.
        most = np.uint64(2**32 - 1)
        lengths = np.minimum(numbers.completion_tokens.astype(np.uint64), most)
        self.kinds["longest"].offer(
            shard, ((most - lengths) << np.uint64(32)) | (keys >> np.uint64(32)), everything
        )
        cut = np.array([reason == CUT_OFF for reason in numbers.reasons], dtype=bool)[numbers.reason]
        self.kinds["truncated"].offer(shard, keys[cut], everything[cut])
        # A row's samples are in one shard: its index stands for its position.
        rows = np.unique(numbers.row)
        self.rows.offer(shard, mix(rows.astype(np.uint64)), rows)


def hash_samples(numbers: PartNumbers) -> NDArray[np.uint64]:
    """Return a key for each sample that its place in the job alone decides."""
    systems = np.array([zlib.crc32(name.encode(errors="replace")) for name in numbers.systems], np.uint64)
    offset = systems[numbers.system] + numbers.index.astype(np.uint64) * np.uint64(0x1_0000_0001)
    return mix(mix(numbers.row.astype(np.uint64)) + offset)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits for each value that look random: SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def choose_stride(samples: int, text_bytes: int, *, most_samples: int, most_bytes: int) -> int:
    """Return n where the text of every n-th shard is to be read, so that neither limit is passed by much."""
    return max(1, -(-samples // most_samples), -(-text_bytes // most_bytes))


def take_every(stride: int, count: int) -> Sequence[int]:
    """Return every `stride`-th of `count` shards, from the middle of the first stretch on."""
    return range(min(stride // 2, count - 1), count, stride) if count else range(0)


ANSWER_BYTES = 10_000
TURN_BYTES = 3_000
MOST_TURNS = 12
"""What of a sample is shown, so that eighty of them stay well below 2 MB. Escaped, in UTF-8."""
MOST_SYSTEMS = 6
EXAMPLES_PER_CODE = 3
MOST_FAILED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTurn:
    """A message of a prompt."""

    role: str
    content: Escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """A finished sample. `place` says where all of it is; `turns` is None where no part has its prompt.

    `note` says why it is shown, where the heading does not.
    """

    title: str
    place: str
    turns: Sequence[ShownTurn] | None
    hidden_turns: int
    answer: Escaped
    reasoning: Escaped | None
    system: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFailure:
    """A sample that could not be made. `place` is its line in the input, or what else is known."""

    title: str
    place: str
    code: str
    message: Escaped
    turns: Sequence[ShownTurn] | None
    hidden_turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The answers to one row under each system message."""

    title: str
    question: Escaped | None
    samples: Sequence[ShownSample]


def fetch(shards: Mapping[int, ShardSamples], subset: SampleSubset, note: str = "") -> list[ShownSample]:
    """Return the samples that were picked, in the order of the dataset."""
    return [
        _show(shards[number], position, row, note)
        for number, positions in subset.by_shard.items()
        for position, row in zip(positions, shards[number].read_made(positions), strict=True)
    ]


def fetch_side_by_side(shards: Mapping[int, ShardSamples], choice: Choice) -> list[SideBySide]:
    """Return the chosen rows, each with the first answer to every system message."""
    return [_compare(shards[number], row) for number, rows in choice.rows.by_shard.items() for row in rows]


def fetch_failures(shards: Iterable[ShardSamples]) -> dict[str, list[ShownFailure]]:
    """Return by code the first samples that failed with it, a dozen in all."""
    examples: dict[str, list[ShownFailure]] = {}
    for samples in shards:
        codes = samples.read_codes()
        if codes is None:
            continue
        positions = _find_examples(codes, {code: len(known) for code, known in examples.items()})
        for row in samples.read_failed(positions) if positions else ():
            if sum(map(len, examples.values())) < MOST_FAILED or row["code"] not in examples:
                examples.setdefault(row["code"], []).append(_show_failure(row))
    return examples


def _find_examples(codes: PartCodes, known: Mapping[str, int]) -> list[int]:
    positions: list[int] = []
    for place, code in enumerate(codes.codes):
        room = EXAMPLES_PER_CODE - known.get(code, 0)
        if room > 0:
            positions += np.nonzero(codes.code == place)[0][:room].tolist()
    return sorted(positions)


def _compare(samples: ShardSamples, row: int) -> SideBySide:
    numbers = samples.read_numbers()
    if numbers is None:
        raise ValueError(f"shard {samples.shard.number} has no finished samples")
    of_row = np.nonzero((numbers.row == row) & (numbers.index == 0))[0][:MOST_SYSTEMS].tolist()
    of_row = of_row or np.nonzero(numbers.row == row)[0][:1].tolist()
    rows = samples.read_made(of_row)
    shown = [_show(samples, at, made, "") for at, made in zip(of_row, rows, strict=True)]
    turns = shown[0].turns or ()
    question = next((turn.content for turn in reversed(turns) if turn.role == "user"), None)
    return SideBySide(title=f"row {row}", question=question, samples=shown)


def _show(samples: ShardSamples, position: int, row: Mapping[str, Any], note: str) -> ShownSample:
    messages = row["messages"]
    # The last message is the answer.
    turns = None if messages is None else _show_turns(messages[:-1])
    return ShownSample(
        title=_name(row),
        place=f"row {position} of {samples.place}, counted from 0",
        turns=turns,
        hidden_turns=max(0, len(messages or ()) - 1 - MOST_TURNS),
        answer=escape_text(row["response"], ANSWER_BYTES),
        reasoning=escape_text(row["reasoning"], TURN_BYTES) if row["reasoning"] else None,
        system=make_visible(row["system"]),
        finish_reason=make_visible(row["finish_reason"]),
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        note=note,
    )


def _show_failure(row: Mapping[str, Any]) -> ShownFailure:
    known = row["source_file"] is not None
    return ShownFailure(
        title=_name(row),
        place=make_visible(f"{row['source_file']}:{row['source_line']}")
        if known
        else f"row {row['row_index']}",
        code=make_visible(row["code"]),
        message=escape_text(row["message"], TURN_BYTES),
        turns=None if row["messages"] is None else _show_turns(row["messages"]),
        hidden_turns=max(0, len(row["messages"] or ()) - MOST_TURNS),
    )


def _show_turns(messages: Sequence[Mapping[str, str]]) -> list[ShownTurn]:
    share = TURN_BYTES * 3 // max(3, min(len(messages), MOST_TURNS))
    return [
        ShownTurn(role=make_visible(turn["role"]), content=escape_text(turn["content"], share))
        for turn in messages[-MOST_TURNS:]
    ]


def _name(row: Mapping[str, Any]) -> str:
    title = f"row {row['row_index']}, sample {row['sample_index']}"
    return title if not row.get("id") else f"{title}, id {make_visible(row['id'][:80])}"
