"""The samples that a report shows, fetched and made fit to be shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthia_batch.report.choosing import Choice, Picks
from synthia_batch.report.shards import ShardSamples
from synthia_batch.report.showing import Shown, make_visible, show_text
from synthia_batch.storage.parts.columns import PartCodes

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
    content: Shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """A finished sample. `place` says where all of it is; `turns` is None where no part has its prompt.

    `note` says why it is shown, where the heading does not.
    """

    title: str
    place: str
    turns: Sequence[ShownTurn] | None
    hidden_turns: int
    answer: Shown
    reasoning: Shown | None
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
    message: Shown
    turns: Sequence[ShownTurn] | None
    hidden_turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The answers to one row under each system message."""

    title: str
    question: Shown | None
    samples: Sequence[ShownSample]


def fetch(shards: Mapping[int, ShardSamples], picks: Picks, note: str = "") -> list[ShownSample]:
    """Return the samples that were picked, in the order of the dataset."""
    return [
        _show(shards[number], position, row, note)
        for number, positions in picks.by_shard.items()
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
        answer=show_text(row["response"], ANSWER_BYTES),
        reasoning=show_text(row["reasoning"], TURN_BYTES) if row["reasoning"] else None,
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
        message=show_text(row["message"], TURN_BYTES),
        turns=None if row["messages"] is None else _show_turns(row["messages"]),
        hidden_turns=max(0, len(row["messages"] or ()) - MOST_TURNS),
    )


def _show_turns(messages: Sequence[Mapping[str, str]]) -> list[ShownTurn]:
    share = TURN_BYTES * 3 // max(3, min(len(messages), MOST_TURNS))
    return [
        ShownTurn(role=make_visible(turn["role"]), content=show_text(turn["content"], share))
        for turn in messages[-MOST_TURNS:]
    ]


def _name(row: Mapping[str, Any]) -> str:
    title = f"row {row['row_index']}, sample {row['sample_index']}"
    return title if not row.get("id") else f"{title}, id {make_visible(row['id'][:80])}"
