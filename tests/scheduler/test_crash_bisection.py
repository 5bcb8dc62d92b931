"""The search for samples that end engines, on engines that only remember which samples do."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthia_batch.core.types import Finished, Request
from synthia_batch.scheduler.crash_bisection import LIVENESS_CHECK, CrashBisector, fail_quarantined
from synthia_batch.scheduler.dispatcher import Dispatcher


def ask(*ordinals: int) -> list[Request]:
    return [Request(ordinal=ordinal, token_ids=b"x" * (1 + ordinal % 7), seed=0) for ordinal in ordinals]


def make(ordinal: int) -> Finished:
    return Finished(
        ordinal=ordinal, response="", reasoning=None, finish_reason="stop",
        prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def count_deaths_to_find(culprits: set[int], total: int, capacity: int) -> int:
    """Play a job on one worker that dies as soon as it holds a culprit; return how often it died."""
    dispatcher = Dispatcher(iter(ask(*range(total))), total)
    dispatcher.add_worker(0, capacity)
    made: Counter[int] = Counter()
    quarantined: set[int] = set()
    deaths = 0
    while not dispatcher.is_done:
        batch = [request.ordinal for request in dispatcher.top_up(0, 1)]
        if culprits & set(batch):
            deaths += 1
            dispatcher.remove_worker(0, suspects_samples=True)
            dispatcher.add_worker(0, capacity)
        else:
            for ordinal in batch:
                made[ordinal] += ordinal != LIVENESS_CHECK.ordinal
                assert dispatcher.accept(0, make(ordinal))
        quarantined |= {request.ordinal for request in dispatcher.take_quarantined()}
    assert quarantined == culprits
    assert made == Counter(set(range(total)) - culprits), "the innocent are made, and made once"
    return deaths


@pytest.mark.parametrize(("total", "most"), [(1, 2), (2, 3), (16, 4), (140, 6), (281, 7), (400, 7)])
def test_one_culprit_costs_few_deaths(total: int, most: int) -> None:
    assert max(count_deaths_to_find({n}, total, 281) for n in range(total)) <= most


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.sets(st.integers(0, 299), max_size=6), st.integers(1, 150))
def test_any_culprits_are_found_and_nobody_else(total: int, wanted: set[int], capacity: int) -> None:
    culprits = {ordinal for ordinal in wanted if ordinal < total}
    assert count_deaths_to_find(culprits, total, capacity) <= 6 * len(culprits)


def test_a_quarantine_waits_until_its_worker_has_shown_that_it_works() -> None:
    suspects = CrashBisector()
    for _ in range(2):
        suspects.add_suspects(0, ask(5))
    assert suspects.take_confirmed() == []
    suspects.confirm(1)
    assert suspects.take_confirmed() == [], "another worker proves nothing about this one"
    suspects.confirm(0)
    assert [request.ordinal for request in suspects.take_confirmed()] == [5]
    assert not suspects.needs_proof(0)


def crash_twice(dispatcher: Dispatcher) -> Request:
    """Have worker 0 die twice with one sample alone in it; it is back then."""
    for _ in range(2):
        dispatcher.add_worker(0, 1)
        (culprit,) = dispatcher.top_up(0, 1)
        dispatcher.remove_worker(0, suspects_samples=True)
    dispatcher.add_worker(0, 3)
    return culprit


def test_a_worker_that_quarantined_a_sample_generates_another_before_anything_else() -> None:
    dispatcher = Dispatcher(iter(ask(*range(4))), 4)
    crash_twice(dispatcher)
    (other,) = dispatcher.top_up(0, 1)
    assert dispatcher.top_up(0, 1) == [], "with nothing else in the engine"
    loss = dispatcher.remove_worker(0, suspects_samples=True)
    assert (loss.unfinished, loss.narrowed) == (1, False), "which is a strike: it may be broken itself"
    dispatcher.add_worker(0, 3)
    (third,) = dispatcher.top_up(0, 1)
    assert third != other
    assert dispatcher.take_quarantined() == []
    assert dispatcher.accept(0, make(third.ordinal))
    assert len(dispatcher.take_quarantined()) == 1


def test_with_no_sample_left_a_question_shows_that_a_worker_is_not_broken() -> None:
    dispatcher = Dispatcher(iter(ask(0)), 1, has_generated=True)
    culprit = crash_twice(dispatcher)
    assert dispatcher.take_quarantined() == [], "others of this job were made: it has to show that it can"
    assert dispatcher.top_up(0, 1) == [LIVENESS_CHECK]
    assert dispatcher.top_up(0, 1) == []
    loss = dispatcher.remove_worker(0, suspects_samples=True)
    assert (loss.unfinished, loss.narrowed) == (0, False), "a strike, and nothing to try again"
    dispatcher.add_worker(0, 3)
    assert dispatcher.top_up(0, 1) == [LIVENESS_CHECK]
    assert dispatcher.accept(0, make(LIVENESS_CHECK.ordinal))
    assert not dispatcher.is_done
    assert dispatcher.take_quarantined() == [culprit]
    assert dispatcher.is_done


def test_a_job_of_which_nothing_can_be_generated_quarantines_what_it_tried_to_the_end() -> None:
    dispatcher = Dispatcher(iter(ask(0)), 1)
    culprit = crash_twice(dispatcher)
    assert dispatcher.take_quarantined() == [culprit]
    assert dispatcher.is_done


def test_a_broken_worker_quarantines_nothing() -> None:
    dispatcher = Dispatcher(iter(ask(*range(40))), 40)
    for _ in range(30):
        dispatcher.add_worker(0, 10)
        dispatcher.top_up(0, 2)
        dispatcher.remove_worker(0, suspects_samples=True)
        assert not dispatcher.take_quarantined()
    dispatcher.give_up(0)
    dispatcher.add_worker(1, 10)
    while not dispatcher.is_done:
        batch = dispatcher.top_up(1, 1)
        assert batch, "what the broken worker had comes to the other"
        for request in batch:
            assert dispatcher.accept(1, make(request.ordinal))
        assert not dispatcher.take_quarantined()


def test_healthy_workers_keep_to_ordinary_samples_while_there_are_any() -> None:
    dispatcher = Dispatcher(iter(ask(*range(100))), 100)
    for worker in (0, 1):
        dispatcher.add_worker(worker, 10)
        dispatcher.top_up(worker, 2)
    dispatcher.remove_worker(0, suspects_samples=True)
    suspected = {request.ordinal for request in ask(*range(100))}
    for _ in range(3):
        held = dispatcher.top_up(1, 2)
        for request in held:
            dispatcher.accept(1, make(request.ordinal))
    dispatcher.add_worker(0, 10)
    group = dispatcher.top_up(0, 2)
    assert 0 < len(group) <= 3 < len(suspected)
    assert dispatcher.top_up(0, 2) == [], "nothing joins a group of suspects"


def test_the_failure_of_a_quarantined_sample_is_always_the_same() -> None:
    (request,) = ask(3)
    assert fail_quarantined(request) == fail_quarantined(request)
    assert fail_quarantined(request).code == "engine_crash"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.data())
def test_every_sample_ends_exactly_once_whatever_happens_to_workers(
    total: int, workers: int, data: st.DataObject
) -> None:
    dispatcher = Dispatcher(iter(ask(*range(total))), total)
    held: dict[int, set[int]] = {}
    ended: Counter[int] = Counter()

    def play(action: str, worker: int) -> None:
        if worker not in held:
            dispatcher.add_worker(worker, 5)
            held[worker] = set()
        elif action == "feed":
            batch = {request.ordinal for request in dispatcher.top_up(worker, workers)}
            others = set().union(*held.values()) - {LIVENESS_CHECK.ordinal}
            assert not batch & others, "a sample is with one worker at a time"
            assert not batch & set(ended), "a sample that has ended is not given out again"
            held[worker] |= batch
        elif action == "end" and held[worker]:
            ordinal = min(held[worker])
            held[worker].remove(ordinal)
            assert dispatcher.accept(worker, make(ordinal))
            assert not dispatcher.accept(worker, make(ordinal))
            ended[ordinal] += ordinal != LIVENESS_CHECK.ordinal
        elif action in ("die", "vanish"):
            loss = dispatcher.remove_worker(worker, suspects_samples=action == "die")
            assert loss.unfinished == len(held.pop(worker) - {LIVENESS_CHECK.ordinal})
        ended.update(request.ordinal for request in dispatcher.take_quarantined())

    actions = st.sampled_from(["feed", "feed", "end", "end", "die", "vanish"])
    moves = st.lists(st.tuples(actions, st.integers(0, workers - 1)), max_size=80)
    for action, worker in data.draw(moves):
        play(action, worker)
    for _ in range(20 * total + 20):  # Then all goes well, and the job must come to its end.
        for worker in range(workers):
            play("feed", worker)
            play("end", worker)
    assert dispatcher.is_done
    assert ended == Counter(range(total))
