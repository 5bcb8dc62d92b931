"""Dispatch without processes."""

import random

import pytest

from synthia_batch.dispatch import WINDOW_SAMPLES, Dispatcher
from synthia_batch.rows import Finished, Request


def make_dispatcher(total: int) -> Dispatcher:
    return Dispatcher((Request(ordinal=n, token_ids=b"x", seed=n) for n in range(total)), total)


def made(ordinal: int) -> Finished:
    return Finished(
        ordinal=ordinal, response="", reasoning=None, finish_reason="stop",
        prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def test_every_sample_is_given_to_exactly_one_worker() -> None:
    dispatcher = make_dispatcher(10)
    dispatcher.open_desk(0, 4)
    dispatcher.open_desk(1, 4)
    first = [request.ordinal for request in dispatcher.top_up(0, 2)]
    second = [request.ordinal for request in dispatcher.top_up(1, 2)]
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert dispatcher.top_up(0, 2) == []


def test_the_first_worker_to_be_ready_leaves_the_others_their_share() -> None:
    dispatcher = make_dispatcher(28)
    dispatcher.open_desk(0, 140)
    assert len(dispatcher.top_up(0, 2)) == 14


def test_what_a_lost_worker_held_goes_to_another_and_only_once() -> None:
    dispatcher = make_dispatcher(4)
    dispatcher.open_desk(0, 4)
    given = dispatcher.top_up(0, 1)
    assert dispatcher.accept(0, made(0))
    assert dispatcher.close_desk(0, blames_samples=False).unfinished == 3
    assert not dispatcher.accept(0, made(1)), "a late word from a closed desk must not count"
    dispatcher.open_desk(1, 10)
    again = dispatcher.top_up(1, 1)
    assert [request.ordinal for request in again] == [1, 2, 3]
    assert again == given[1:]


def test_a_sample_counts_once_however_often_it_is_reported() -> None:
    dispatcher = make_dispatcher(2)
    dispatcher.open_desk(0, 2)
    dispatcher.top_up(0, 1)
    assert dispatcher.accept(0, made(0))
    assert not dispatcher.accept(0, made(0))
    assert not dispatcher.accept(0, made(7))
    assert not dispatcher.is_done
    assert dispatcher.accept(0, made(1))
    assert dispatcher.is_done


def test_samples_are_read_only_as_far_as_workers_can_take_them() -> None:
    read = []

    def requests():  # type: ignore[no-untyped-def]
        for n in range(1_000_000):
            read.append(n)
            yield Request(ordinal=n, token_ids=b"x", seed=n)

    dispatcher = Dispatcher(requests(), 1_000_000)
    dispatcher.open_desk(0, 8)
    dispatcher.top_up(0, 1)
    assert len(read) <= WINDOW_SAMPLES


def test_samples_that_never_reach_a_worker_still_count() -> None:
    dispatcher = make_dispatcher(1)
    dispatcher.end_unsent()
    assert dispatcher.is_done


def test_the_longest_prompts_of_a_window_go_first_and_equal_ones_together() -> None:
    lengths = [3, 9, 9, 1]
    requests = (Request(ordinal=n, token_ids=b"x" * length, seed=n) for n, length in enumerate(lengths))
    dispatcher = Dispatcher(requests, 4)
    dispatcher.open_desk(0, 4)
    assert [request.ordinal for request in dispatcher.top_up(0, 1)] == [1, 2, 0, 3]


@pytest.mark.parametrize(("workers", "batch", "samples"), [(2, 128, 512), (2, 128, 2048), (8, 128, 16384)])
def test_no_engine_idles_while_another_works_on_answers_of_any_length(
    workers: int, batch: int, samples: int
) -> None:
    """Engines that make one token per step for each of their batch; the driver looks in every fifth step."""
    draw = random.Random(1)
    lengths = [draw.randint(8, 512) for _ in range(samples)]
    dispatcher = make_dispatcher(samples)
    waiting: list[list[int]] = [[] for _ in range(workers)]
    running: list[dict[int, int]] = [{} for _ in range(workers)]
    for worker in range(workers):
        dispatcher.open_desk(worker, batch + batch // 10)
    busy, steps = [0] * workers, 0
    while not dispatcher.is_done:
        for worker in range(workers):
            if steps % 5 == 0:
                waiting[worker] += [request.ordinal for request in dispatcher.top_up(worker, workers)]
            while waiting[worker] and len(running[worker]) < batch:
                ordinal = waiting[worker].pop(0)
                running[worker][ordinal] = lengths[ordinal]
            busy[worker] += bool(running[worker])
            running[worker] = {ordinal: left - 1 for ordinal, left in running[worker].items()}
            for ordinal in [ordinal for ordinal, left in running[worker].items() if left == 0]:
                del running[worker][ordinal]
                assert dispatcher.accept(worker, made(ordinal))
        steps += 1
    assert min(busy) / steps >= 0.95
