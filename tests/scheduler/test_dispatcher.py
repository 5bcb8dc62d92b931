"""Dispatch without processes."""

import itertools
import random
from collections import deque
from dataclasses import replace

import pytest

from synthia_batch.core.types import Finished, Request
from synthia_batch.scheduler.dispatcher import WINDOW_SAMPLES, Dispatcher
from synthia_batch.scheduler.order import LONGEST_FIRST, LONGEST_FIRST_BY_PREFIX, DispatchOrder


def make_dispatcher(total: int) -> Dispatcher:
    return Dispatcher((Request(ordinal=n, token_ids=b"x", seed=n) for n in range(total)), total)


def made(ordinal: int) -> Finished:
    return Finished(
        ordinal=ordinal, response="", reasoning=None, finish_reason="stop",
        prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def test_every_sample_is_given_to_exactly_one_worker() -> None:
    dispatcher = make_dispatcher(10)
    dispatcher.add_worker(0, 4)
    dispatcher.add_worker(1, 4)
    first = [request.ordinal for request in dispatcher.top_up(0, 2)]
    second = [request.ordinal for request in dispatcher.top_up(1, 2)]
    assert (first, second) == ([0, 2, 4, 6], [1, 3, 5, 7])
    assert dispatcher.top_up(0, 2) == []


def test_the_first_worker_to_be_ready_leaves_the_others_their_share() -> None:
    dispatcher = make_dispatcher(28)
    dispatcher.add_worker(0, 140)
    assert len(dispatcher.top_up(0, 2)) == 14


def test_what_a_lost_worker_held_goes_to_another_and_only_once() -> None:
    dispatcher = make_dispatcher(4)
    dispatcher.add_worker(0, 4)
    given = dispatcher.top_up(0, 1)
    assert dispatcher.accept(0, made(0))
    assert dispatcher.remove_worker(0, suspects_samples=False).unfinished == 3
    assert not dispatcher.accept(0, made(1)), "a late outcome from a removed worker must not count"
    dispatcher.add_worker(1, 10)
    again = dispatcher.top_up(1, 1)
    assert [request.ordinal for request in again] == [1, 2, 3]
    assert again == given[1:]


def test_a_sample_counts_once_however_often_it_is_reported() -> None:
    dispatcher = make_dispatcher(2)
    dispatcher.add_worker(0, 2)
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
    dispatcher.add_worker(0, 8)
    dispatcher.top_up(0, 1)
    assert len(read) <= WINDOW_SAMPLES


def test_samples_that_never_reach_a_worker_still_count() -> None:
    dispatcher = make_dispatcher(1)
    dispatcher.end_unsent()
    assert dispatcher.is_done


def test_the_longest_prompts_of_a_window_go_first_and_equal_ones_together() -> None:
    lengths = [3, 9, 9, 1]
    requests = (Request(ordinal=n, token_ids=b"x" * length, seed=n) for n, length in enumerate(lengths))
    dispatcher = Dispatcher(requests, 4, has_generated=True)
    dispatcher.add_worker(0, 4)
    assert [request.ordinal for request in dispatcher.top_up(0, 1)] == [1, 2, 0, 3]


def test_the_first_answer_of_a_job_does_not_wait_for_the_longest() -> None:
    limits = [400, *range(100, 110), 8, 300, *range(20, 30)]
    requests = [Request(ordinal=n, token_ids=b"xx", seed=n, max_tokens=m) for n, m in enumerate(limits)]
    dispatcher = Dispatcher(iter(requests), len(requests))
    queues = []
    for worker in range(2):
        dispatcher.add_worker(worker, 4)
        queues.append([request.max_tokens for request in dispatcher.top_up(worker, 2)])
    assert queues == [[8, 400, 109, 107], [20, 300, 108, 106]]


def test_another_order_is_applied_as_it_is() -> None:
    backwards = DispatchOrder(group=lambda window: [[request] for request in reversed(window)])
    requests = [Request(ordinal=n, token_ids=b"x" * (9 - n), seed=n) for n in range(6)]
    dispatcher = Dispatcher(iter(requests), 6, order=backwards)
    dispatcher.add_worker(0, 6)
    dispatcher.add_worker(1, 6)
    assert [request.ordinal for request in dispatcher.top_up(0, 2)] == [5, 3, 1]
    assert [request.ordinal for request in dispatcher.top_up(1, 2)] == [4, 2, 0]


def test_of_prompts_that_are_as_long_as_each_other_the_first_of_the_input_goes_first() -> None:
    dispatcher = make_dispatcher(6)
    dispatcher.add_worker(0, 3)
    assert [request.ordinal for request in dispatcher.top_up(0, 1)] == [0, 1, 2]


def test_the_engine_that_is_ready_first_does_not_take_all_the_longest() -> None:
    """Half of the job fits into each engine's batch: what they take at once is all that they get."""
    draw = random.Random(4)
    requests = [Request(ordinal=n, token_ids=b"x" * draw.randint(8, 1500), seed=n) for n in range(512)]
    dispatcher = Dispatcher(iter(requests), len(requests))
    for worker in range(2):
        dispatcher.add_worker(worker, 256)
    tokens = [sum(len(r.token_ids) for r in dispatcher.top_up(worker, 2)) for worker in range(2)]
    assert sum(tokens) == sum(len(request.token_ids) for request in requests)
    assert max(tokens) < 1.02 * min(tokens)


def test_queues_of_workers_that_never_came_are_taken_by_those_that_are_there() -> None:
    """Eight engines were expected, one came: nothing waits for the other seven."""
    dispatcher = make_dispatcher(1200)
    (given,) = serve(dispatcher, 1, 4, expected=8)
    assert sorted(request.ordinal for request in given) == list(range(1200))


def write_prompts(prefixes: int, each: int, prefix_tokens: int = 64) -> list[Request]:
    """Prompts as a job with several system messages has them: each row once with each, row by row."""
    draw = random.Random(2)
    starts = [[1, *(draw.randrange(1000) for _ in range(prefix_tokens))] for _ in range(prefixes)]
    rows = [[draw.randrange(1000) for _ in range(draw.randint(4, 40))] for _ in range(each)]
    pairs = [(start, row) for row in rows for start in starts]
    return [Request(ordinal=n, token_ids=start + row, seed=n) for n, (start, row) in enumerate(pairs)]


def serve(
    dispatcher: Dispatcher, workers: int, capacity: int, expected: int | None = None
) -> list[list[Request]]:
    """Have workers take one sample as soon as one ends, in turn; return what each was given.

    `expected` is the number of workers that dispatch counts on, where it is not `workers`.
    """
    sharing = expected or workers
    given: list[list[Request]] = [[] for _ in range(workers)]
    for worker in range(workers):
        dispatcher.add_worker(worker, capacity)
        given[worker] += dispatcher.top_up(worker, sharing)
    ended = 0
    while not dispatcher.is_done:
        for worker in range(workers):
            if given[worker][ended:]:
                assert dispatcher.accept(worker, made(given[worker][ended].ordinal))
            given[worker] += dispatcher.top_up(worker, sharing)
        ended += 1
    return given


@pytest.mark.parametrize("order", [LONGEST_FIRST_BY_PREFIX, LONGEST_FIRST])
def test_prompts_that_begin_alike_meet_in_few_engines_only_where_there_is_a_cache(
    order: DispatchOrder,
) -> None:
    prefixes, each, workers = 63, 8, 4
    requests = write_prompts(prefixes, each)
    dispatcher = Dispatcher(iter(requests), len(requests), order=order, has_generated=True)
    given = serve(dispatcher, workers, 8)
    assert sorted(r.ordinal for requests in given for r in requests) == list(range(prefixes * each))
    computed = sum(len({tuple(r.token_ids[:65]) for r in requests}) for requests in given)
    if order is LONGEST_FIRST_BY_PREFIX:
        assert computed <= 1.25 * prefixes, "each prefix is computed once, but at the ends"
    else:
        assert computed > 2 * prefixes
        for requests in given:
            lengths = [len(request.token_ids) for request in requests]
            assert lengths == sorted(lengths, reverse=True), "without a cache only the length counts"


def test_two_system_messages_take_turns_so_that_the_longest_still_go_first() -> None:
    requests = write_prompts(prefixes=2, each=200)
    dispatcher = Dispatcher(iter(requests), len(requests), order=LONGEST_FIRST_BY_PREFIX, has_generated=True)
    (given,) = serve(dispatcher, 1, 8)
    switches = sum(a.token_ids[:65] != b.token_ids[:65] for a, b in itertools.pairwise(given))
    assert switches <= len(requests) / 16, "in groups of sixteen"
    longest, shortest = given[: len(given) // 4], given[-len(given) // 4 :]
    assert min(len(r.token_ids) for r in longest) >= max(len(r.token_ids) for r in shortest)


def test_the_samples_of_one_prompt_stay_together() -> None:
    """Four samples of each of 40 prompts that have little in common."""
    draw = random.Random(3)
    prompts = [[draw.randrange(1000) for _ in range(30)] for _ in range(40)]
    requests = [Request(ordinal=n, token_ids=prompts[n // 4], seed=n) for n in range(160)]
    given = serve(Dispatcher(iter(requests), 160, order=LONGEST_FIRST_BY_PREFIX), 2, 8)
    assert sum(len({r.ordinal // 4 for r in requests}) for requests in given) <= 42


def test_the_rest_of_a_lost_workers_queue_is_not_lost() -> None:
    requests = write_prompts(prefixes=1, each=32)
    dispatcher = Dispatcher(iter(requests), 32, order=LONGEST_FIRST_BY_PREFIX)
    dispatcher.add_worker(0, 4)
    begun = dispatcher.top_up(0, 1)
    dispatcher.remove_worker(0, suspects_samples=False)
    dispatcher.add_worker(1, 32)
    assert sorted(r.ordinal for r in dispatcher.top_up(1, 1)) == list(range(32))
    assert len(begun) == 4


def test_at_the_tail_an_engine_takes_over_the_rest_of_anothers_queue() -> None:
    requests = write_prompts(prefixes=1, each=16)
    dispatcher = Dispatcher(iter(requests), 16, order=LONGEST_FIRST_BY_PREFIX)
    dispatcher.add_worker(0, 2)
    dispatcher.add_worker(1, 2)
    first = [request.ordinal for request in dispatcher.top_up(0, 2)]
    second = [request.ordinal for request in dispatcher.top_up(1, 2)]
    assert len(first) == len(second) == 2
    assert not set(first) & set(second)


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
        dispatcher.add_worker(worker, batch + batch // 10)
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


@pytest.mark.parametrize("speeds", [(1, 10), (1, 1), (1, 3, 30)])
@pytest.mark.parametrize("samples", [6, 60, 300, 1000])
def test_at_the_tail_no_engine_idles_while_another_has_samples_that_it_has_not_begun(
    speeds: tuple[int, ...], samples: int
) -> None:
    """Engines of unequal speeds with places for 16 samples, which were taken to hold 140."""
    places, capacity, tokens = 16, 140, 300
    dispatcher = make_dispatcher(samples)
    waiting: list[list[int]] = [[] for _ in speeds]
    running: list[dict[int, int]] = [{} for _ in speeds]
    for worker in range(len(speeds)):
        dispatcher.add_worker(worker, capacity)
    idle = 0
    while not dispatcher.is_done:
        for worker, _ in enumerate(speeds):
            waiting[worker] += [request.ordinal for request in dispatcher.top_up(worker, len(speeds))]
        for worker in dispatcher.choose_recalls():
            dispatcher.take_back(worker, waiting[worker])
            waiting[worker].clear()
        for worker, speed in enumerate(speeds):
            while waiting[worker] and len(running[worker]) < places:
                running[worker][waiting[worker].pop(0)] = tokens
            running[worker] = {ordinal: left - speed for ordinal, left in running[worker].items()}
            for ordinal in [ordinal for ordinal, left in running[worker].items() if left <= 0]:
                del running[worker][ordinal]
                assert dispatcher.accept(worker, made(ordinal))
        if any(waiting):
            idle = 0 if all(running) else idle + 1
            assert idle <= 2, "what waits must go to the idle one in the next round"


def test_a_worker_is_asked_once_for_what_it_has_not_begun() -> None:
    dispatcher = make_dispatcher(8)
    dispatcher.add_worker(0, 8)
    assert len(dispatcher.top_up(0, 1)) == 8
    assert dispatcher.choose_recalls() == [], "nobody else could take it"
    dispatcher.add_worker(1, 8)
    assert dispatcher.top_up(1, 2) == []
    assert dispatcher.choose_recalls() == [0]
    assert dispatcher.choose_recalls() == []
    dispatcher.take_back(0, [5, 6, 7])
    assert [request.ordinal for request in dispatcher.top_up(1, 2)] == [5, 6, 7]
    assert not dispatcher.accept(0, made(5)), "it was given back"
    assert dispatcher.accept(1, made(5))
    assert dispatcher.held == {0: 5, 1: 2}


def test_what_is_drawn_leaves_one_for_every_idle_worker_while_suspects_wait() -> None:
    dispatcher = make_dispatcher(5)
    for worker in range(3):
        dispatcher.add_worker(worker, 4)
    dispatcher.top_up(2, 2)  # Three of the five, and dies of them.
    dispatcher.remove_worker(2, suspects_samples=True)
    for _ in range(3):
        dispatcher.add_worker(2, 4)
        suspects = dispatcher.top_up(2, 3)
        assert [len(dispatcher.top_up(worker, 3)) for worker in (0, 1)] == [1, 1]
        assert dispatcher.choose_recalls() == []
        for worker in (0, 1):
            held = list(dispatcher._slots[worker].held)
            dispatcher.take_back(worker, held)
        dispatcher.remove_worker(2, suspects_samples=len(suspects) > 1)


def follow(request: Request) -> Request:
    return Request(ordinal=request.ordinal, token_ids=b"xx", seed=1, turn=request.turn + 1)


def answer(request: Request) -> Finished:
    return replace(made(request.ordinal), turn=request.turn)


def test_the_next_turn_goes_first_and_to_the_worker_that_made_the_last() -> None:
    dispatcher = make_dispatcher(8)
    dispatcher.add_worker(0, 2)
    dispatcher.add_worker(1, 2)
    first, _ = dispatcher.top_up(0, 2)
    dispatcher.top_up(1, 2)
    assert dispatcher.accept(0, answer(first))
    dispatcher.continue_with(0, follow(first))
    assert dispatcher.top_up(0, 2) == [follow(first)], "before the samples that have not begun"
    assert dispatcher.in_flight == 4


def test_a_conversation_ends_with_its_last_turn() -> None:
    dispatcher = make_dispatcher(1)
    dispatcher.add_worker(0, 2)
    (request,) = dispatcher.top_up(0, 1)
    for _ in range(3):
        assert dispatcher.accept(0, answer(request))
        dispatcher.continue_with(0, follow(request))
        assert not dispatcher.is_done
        assert not dispatcher.accept(0, answer(request)), "a turn that is reported again is not the next"
        (request,) = dispatcher.top_up(0, 1)
        assert not dispatcher.accept(0, replace(answer(request), turn=request.turn - 1))
    assert dispatcher.accept(0, answer(request))
    assert dispatcher.is_done


def test_a_worker_with_nothing_to_do_takes_over_the_next_turn() -> None:
    dispatcher = make_dispatcher(4)
    dispatcher.add_worker(0, 4)
    requests = dispatcher.top_up(0, 1)
    dispatcher.add_worker(1, 4)
    assert dispatcher.accept(0, answer(requests[0]))
    dispatcher.continue_with(0, follow(requests[0]))
    assert dispatcher.top_up(0, 2) == [], "it has more than its share"
    assert dispatcher.top_up(1, 2) == [follow(requests[0])]


def test_the_next_turn_of_a_worker_that_died_goes_to_another() -> None:
    dispatcher = make_dispatcher(2)
    dispatcher.add_worker(0, 2)
    first, second = dispatcher.top_up(0, 1)
    assert dispatcher.accept(0, answer(first))
    dispatcher.continue_with(0, follow(first))
    dispatcher.remove_worker(0, suspects_samples=False)
    dispatcher.add_worker(1, 2)
    given = dispatcher.top_up(1, 1)
    assert sorted(given, key=lambda request: request.ordinal) == sorted(
        [follow(first), second], key=lambda request: request.ordinal
    )


def test_deaths_in_one_turn_are_not_held_against_the_next() -> None:
    dispatcher = make_dispatcher(2)
    dispatcher.add_worker(0, 1)
    (request,) = dispatcher.top_up(0, 1)
    dispatcher.remove_worker(0, suspects_samples=True)
    dispatcher.add_worker(0, 1)
    assert dispatcher.top_up(0, 1) == [request], "alone, as a suspect"
    assert dispatcher.accept(0, answer(request))
    dispatcher.continue_with(0, follow(request))
    assert dispatcher.top_up(0, 1) == [follow(request)]
    dispatcher.remove_worker(0, suspects_samples=True)
    dispatcher.add_worker(0, 1)
    assert dispatcher.top_up(0, 1) == [follow(request)], "its first death in this turn quarantines nothing"


def test_a_turn_that_crashes_engines_is_quarantined() -> None:
    dispatcher = make_dispatcher(3)
    dispatcher.add_worker(0, 1)
    (request,) = dispatcher.top_up(0, 1)
    assert dispatcher.accept(0, answer(request))
    dispatcher.continue_with(0, follow(request))
    for _ in range(2):
        assert dispatcher.top_up(0, 1) == [follow(request)]
        dispatcher.remove_worker(0, suspects_samples=True)
        dispatcher.add_worker(0, 1)
    assert dispatcher.take_quarantined() == []
    (other,) = dispatcher.top_up(0, 1)
    assert dispatcher.accept(0, answer(other)), "which shows that the worker works"
    assert dispatcher.take_quarantined() == [follow(request)]


def test_an_engine_without_a_queue_is_given_whole_groups_of_another() -> None:
    requests = sorted(write_prompts(prefixes=3, each=8), key=lambda request: list(request.token_ids)[:65])
    queue = deque(requests)
    given = LONGEST_FIRST_BY_PREFIX.share(queue)
    assert [*queue, *given] == requests
    assert len(given) == 8, "the half would begin within the second group"
    assert LONGEST_FIRST_BY_PREFIX.share(deque(requests[:8])) == deque(requests[4:8])
    assert LONGEST_FIRST_BY_PREFIX.share(deque(requests[:1])) == deque(requests[:1])
    assert LONGEST_FIRST.share(queue) is queue
