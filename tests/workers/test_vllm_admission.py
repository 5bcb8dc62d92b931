"""What a vLLM engine lets in for one step, without vLLM."""

from collections.abc import Iterator

import pytest

from synthia_batch.core.types import Request
from synthia_batch.workers.vllm.admission import (
    CPU_FIRST_PREFILL_TOKENS,
    CPU_FIRST_SEQS,
    CPU_FIRST_STEPS,
    CPU_PREFILL_TOKENS,
    CPU_SHORT_SEQS,
    KvBudget,
    StepBudget,
)
from synthia_batch.workers.vllm.segments import split_prompt

PROMPT = 64
"""Tokens of each prompt here."""


def let_in(budget: StepBudget, running: int) -> int:
    """Return how many requests join `running` ones in one step."""
    joined = 0
    while not budget.is_full(running + joined, joined * PROMPT):
        joined += 1
    return joined


def fill(budget: StepBudget, ends_at: int | None = None, first_tokens: int = 128) -> Iterator[int]:
    """Yield the size of the batch with each step; with the step `ends_at` one ends."""
    running, step = 0, 0
    budget.begin(first_tokens)
    while True:
        running += let_in(budget, running)
        yield running
        step += 1
        budget.note_step(ended=step == ends_at)
        running -= step == ends_at


def test_a_batch_begins_with_small_steps_and_few_requests() -> None:
    sizes = [size for size, _ in zip(fill(StepBudget(128)), range(CPU_FIRST_STEPS), strict=False)]
    assert sizes[0] == CPU_FIRST_PREFILL_TOKENS // PROMPT
    assert sizes[-1] == max(sizes) == CPU_FIRST_SEQS


def test_after_the_first_steps_the_batch_fills_in_large_ones() -> None:
    batches = fill(StepBudget(128))
    sizes = [next(batches) for _ in range(CPU_FIRST_STEPS + 20)]
    assert sizes[CPU_FIRST_STEPS] - sizes[CPU_FIRST_STEPS - 1] == CPU_PREFILL_TOKENS // PROMPT
    assert sizes[-1] == 128


def test_with_the_first_answer_the_first_steps_are_over() -> None:
    batches = fill(StepBudget(128), ends_at=10)
    sizes = [next(batches) for _ in range(11)]
    assert sizes[9] == CPU_FIRST_SEQS
    assert sizes[10] == CPU_FIRST_SEQS - 1 + CPU_PREFILL_TOKENS // PROMPT


def test_a_short_first_request_waits_for_few_others() -> None:
    batches = fill(StepBudget(128), ends_at=8, first_tokens=8)
    sizes = [next(batches) for _ in range(9)]
    assert sizes[7] == CPU_SHORT_SEQS < CPU_FIRST_SEQS
    assert sizes[8] == CPU_SHORT_SEQS - 1 + CPU_PREFILL_TOKENS // PROMPT


def test_an_engine_that_runs_dry_begins_anew() -> None:
    budget = StepBudget(128)
    budget.begin(first_tokens=128)
    budget.note_step(ended=True)
    assert let_in(budget, 0) == CPU_PREFILL_TOKENS // PROMPT
    budget.begin(first_tokens=128)
    assert let_in(budget, 0) == CPU_FIRST_PREFILL_TOKENS // PROMPT


@pytest.mark.parametrize("seqs", [1, 8])
def test_no_batch_is_larger_than_the_engine_takes(seqs: int) -> None:
    batches = fill(StepBudget(seqs))
    assert max(next(batches) for _ in range(CPU_FIRST_STEPS + 20)) == seqs


def test_room_is_counted_in_whole_blocks_and_given_back() -> None:
    budget = KvBudget(blocks=4, block_size=16)
    assert budget.can_hold(64)
    assert not budget.can_hold(65)
    assert budget.reserve(17)
    assert budget.reserve(32)
    assert not budget.reserve(1), "two blocks each are taken"
    budget.release(17)
    assert budget.reserve(32)
    assert not budget.reserve(1)


def test_blocks_of_a_shared_segment_are_reserved_once() -> None:
    budget = KvBudget(blocks=10, block_size=16)
    request = Request(ordinal=0, token_ids=range(100), seed=0, cuts=(64, 99))
    whole = split_prompt(request, 16)
    opening = whole[:1]
    assert budget.reserve(112, whole), "seven blocks, six of them in segments"
    assert budget.reserve(112, whole), "one block more"
    assert budget.reserve(80, opening), "one block more"
    assert budget.reserve(16)
    assert not budget.reserve(16)
    budget.release(112, whole)
    assert budget.reserve(16)
    assert not budget.reserve(16), "the other still uses the segments"
    budget.release(112, whole)
    assert budget.reserve(48), "its own block, and the two blocks behind the opening"
    assert not budget.reserve(16)
    budget.release(80, opening)
    assert budget.reserve(80)
