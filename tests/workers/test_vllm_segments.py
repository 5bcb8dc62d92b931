"""Segments of prompts and the table of those that a cache has, without vLLM."""

from collections.abc import Sequence

import pytest

from synthia_batch.core.types import Request
from synthia_batch.workers.vllm.prefix_cuts import ARGUMENT, name_cuts
from synthia_batch.workers.vllm.segments import SegmentTable, count_taken, split_prompt


def make_request(length: int, *cuts: int, first: int = 0, adapter: str | None = None) -> Request:
    return Request(
        ordinal=0, token_ids=range(first, first + length), seed=0, cuts=cuts, adapter=adapter
    )  # fmt: skip


@pytest.mark.parametrize(
    ("length", "cuts", "stops"),
    [
        (100, (), []),
        (100, (70,), [64]),
        (100, (32, 99), [32, 96]),
        (100, (40, 60), [32]),  # both fall on one block
        (100, (31,), []),
        (96, (95, 96), [64]),  # the last token is always computed
        (33, (32,), [32]),
    ],
)
def test_cuts_are_full_blocks_and_leave_a_token(length: int, cuts: Sequence[int], stops: list[int]) -> None:
    segments = split_prompt(make_request(length, *cuts), 32)
    assert [one.stop for one in segments] == stops
    assert [one.start for one in segments] == [0, *stops][: len(stops)]


def test_prompts_share_a_segment_if_all_before_it_is_equal() -> None:
    one = split_prompt(make_request(100, 64, 96), 32)
    longer = split_prompt(make_request(200, 64, 160), 32)
    assert longer[0].key == one[0].key
    assert longer[1].key != one[1].key
    others = [
        make_request(100, 64, 96, first=1),
        make_request(100, 64, 96, adapter="a"),
        make_request(100, 32, 64, 96),  # the same tokens in other pieces
    ]
    for other in others:
        assert not {s.key for s in split_prompt(other, 32)} & {s.key for s in one}


def test_a_segment_is_computed_once_and_again_if_it_was_missed() -> None:
    table = SegmentTable(capacity=10)
    first, second, third = split_prompt(make_request(200, 64, 128, 192), 32)
    assert table.add([first, second]) == [first, second]
    assert table.add([first, second, third]) == [third]
    table.forget([first, second, third], found=96)
    assert table.add([first, second, third]) == [second, third]


def test_the_table_forgets_what_was_used_longest_ago() -> None:
    table = SegmentTable(capacity=2)
    a, b, c = (split_prompt(make_request(40, 39, first=n), 32) for n in (0, 1, 2))
    for segments in (a, b, a, c):
        table.add(segments)
    assert table.add(a) == []
    assert table.add(b) == list(b)


def test_a_request_takes_all_its_cuts_and_a_segment_those_before_it() -> None:
    first, second = split_prompt(make_request(100, 64, 96), 32)
    assert count_taken((first, second)) == 96
    assert count_taken(()) == 0
    assert (first.start, second.start) == (0, 64)
    assert name_cuts("7", [64, 96], 96)[ARGUMENT] == {"name": "7", "cuts": [64, 96], "taken": 96}
