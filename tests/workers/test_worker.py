"""A worker and its feed loop, on small engines made for one fault each."""

import dataclasses
import threading
import time
from collections.abc import Sequence

import pytest
from pydantic import BaseModel, ValidationError

from synthia_batch.core.types import Failed, Finished, Outcome, Request
from synthia_batch.errors import DeterminismBroken, SampleRefused, UsageError
from synthia_batch.workers.canary import Canaries, run_canaries
from synthia_batch.workers.engine import EngineFacts, describe_refusal
from synthia_batch.workers.worker import Delivery, Worker


class EchoEngine:
    """Ends everything it holds at each step. Refuses ordinal 13, dies of 666, and tells how full it was."""

    def __init__(self, tells_batch: bool = False) -> None:
        self.held: list[Request] = []
        self.begun = 0
        self.tells_batch = tells_batch
        self.closed = False
        self.may_step = threading.Event()
        self.may_step.set()

    cached_prompt_tokens = 0
    facts = EngineFacts(engine="echo", version="1", device="none", capacity=4, max_model_len=100)

    def add(self, request: Request) -> None:
        if request.ordinal == 13:
            raise SampleRefused("unlucky", "not this one")
        self.held.append(request)

    def step(self) -> Sequence[Outcome]:
        self.begun = len(self.held)
        self.may_step.wait()
        self.begun = 0
        if any(request.ordinal == 666 for request in self.held):
            raise RuntimeError("the device is gone")
        held, self.held = self.held, []
        text = f"among {len(held)}" if self.tells_batch else "the same"
        return [
            Finished(
                ordinal=request.ordinal, response=text, reasoning=None, finish_reason="stop",
                prompt_tokens=1, completion_tokens=1,
            )
            for request in held
        ]  # fmt: skip

    def withdraw(self) -> Sequence[int]:
        waiting, self.held = self.held[self.begun :], self.held[: self.begun]
        return [request.ordinal for request in waiting]

    def abort(self) -> None:
        self.held.clear()

    def adopt(self, spec: object) -> None:
        """It asks nothing of a specification."""

    def close(self) -> None:
        self.closed = True


def ask(*ordinals: int) -> list[Request]:
    return [Request(ordinal=ordinal, token_ids=[1], seed=0) for ordinal in ordinals]


CANARIES = Canaries(prompts=tuple(ask(-1, -2)), fillers=tuple(ask(-3, -4, -5)))


def collect_until(worker: Worker, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + 10
    while len(outcomes) < count:
        assert time.monotonic() < deadline, "the worker went quiet"
        outcomes += worker.collect(0.1).outcomes
    return outcomes


def wait_for_step(engine: EchoEngine) -> None:
    deadline = time.monotonic() + 10
    while not engine.held:
        assert time.monotonic() < deadline, "the worker took nothing in"
        time.sleep(0.001)


def test_what_is_fed_is_delivered_once() -> None:
    worker = Worker(EchoEngine())
    worker.start()
    worker.feed(ask(1, 2))
    worker.feed(ask(3))
    assert sorted(outcome.ordinal for outcome in collect_until(worker, 3)) == [1, 2, 3]
    quiet: Delivery = worker.collect(0.01)
    assert (quiet.outcomes, quiet.unfinished, quiet.error) == ((), 0, None)
    worker.stop(5)


def test_an_engine_is_busy_from_taking_in_to_handing_out() -> None:
    engine, now = EchoEngine(), [100.0]
    engine.may_step.clear()
    worker = Worker(engine, clock=lambda: now[0])
    worker.start()
    now[0] = 200.0
    assert worker.collect(0).busy_seconds == 0, "waiting for requests is no work"
    worker.feed(ask(1))
    wait_for_step(engine)
    now[0] = 203.0
    assert worker.collect(0).busy_seconds == 3, "told in the middle of a step too"
    now[0] = 205.0
    engine.may_step.set()
    collect_until(worker, 1)
    now[0] = 300.0
    assert worker.collect(0).busy_seconds == 5
    worker.stop(5)


def test_a_refused_prompt_becomes_a_failed_sample() -> None:
    worker = Worker(EchoEngine())
    worker.start()
    worker.feed(ask(12, 13))
    outcomes = {outcome.ordinal: outcome for outcome in collect_until(worker, 2)}
    assert getattr(outcomes[13], "code", None) == "unlucky"
    assert isinstance(outcomes[12], Finished)
    worker.stop(5)


def test_an_engines_death_is_told_with_its_reason() -> None:
    worker = Worker(EchoEngine())
    worker.start()
    worker.feed(ask(666))
    deadline = time.monotonic() + 10
    while (delivery := worker.collect(0.1)).error is None:
        assert time.monotonic() < deadline
    assert "the device is gone" in delivery.error
    assert delivery.unfinished == 1


def test_stopping_ends_the_loop_and_closes_the_engine() -> None:
    engine = EchoEngine()
    worker = Worker(engine)
    worker.start()
    worker.stop(5)
    assert engine.closed


def test_aborted_samples_yield_nothing() -> None:
    engine = EchoEngine()
    engine.may_step.clear()
    worker = Worker(engine)
    worker.start()
    worker.feed(ask(1))
    wait_for_step(engine)
    worker.feed(ask(2))  # Sample 1 is in the step; this one is still in the inbox.
    worker.abort()
    engine.may_step.set()
    worker.feed(ask(3))
    ended = {outcome.ordinal for outcome in collect_until(worker, 1)}
    time.sleep(0.2)
    ended |= {outcome.ordinal for outcome in worker.collect(0.1).outcomes}
    assert 2 not in ended
    worker.stop(5)


def test_what_was_not_begun_is_given_back_and_yields_nothing() -> None:
    engine = EchoEngine()
    engine.may_step.clear()
    worker = Worker(engine)
    worker.start()
    worker.feed(ask(1))
    wait_for_step(engine)
    worker.feed(ask(2, 3))
    worker.recall()
    engine.may_step.set()
    deliveries = [worker.collect(1.0)]
    deadline = time.monotonic() + 10
    while not deliveries[-1].returned and time.monotonic() < deadline:
        deliveries.append(worker.collect(0.2))
    assert [outcome.ordinal for delivery in deliveries for outcome in delivery.outcomes] == [1]
    assert [ordinal for delivery in deliveries for ordinal in delivery.returned] == [2, 3]
    assert deliveries[-1].unfinished == 0
    worker.feed(ask(4))
    assert [outcome.ordinal for outcome in collect_until(worker, 1)] == [4], "it goes on afterwards"
    worker.stop(5)


def test_an_engine_that_answers_no_canary_is_refused() -> None:
    class Refusing(EchoEngine):
        def step(self) -> Sequence[Outcome]:
            held, self.held = self.held, []
            return [
                Failed(ordinal=request.ordinal, code="refused_by_engine", message="no") for request in held
            ]

    with pytest.raises(UsageError, match="refused_by_engine: no"):
        run_canaries(Refusing(), CANARIES)


def test_canaries_pass_where_the_batch_does_not_show() -> None:
    assert run_canaries(EchoEngine(), CANARIES) == run_canaries(EchoEngine(), CANARIES)


def test_canaries_catch_an_engine_whose_answers_depend_on_the_batch() -> None:
    with pytest.raises(DeterminismBroken, match=r"(?s)among 1.*among 5.*engine: echo 1.*device: none"):
        run_canaries(EchoEngine(tells_batch=True), CANARIES)


def test_canaries_see_a_last_bit_before_a_token_differs() -> None:
    class Rounding(EchoEngine):
        def step(self) -> Sequence[Outcome]:
            logprob = -1.5 if len(self.held) < 3 else -1.5000000000000002
            return [
                dataclasses.replace(outcome, logprob=logprob)
                for outcome in super().step()
                if isinstance(outcome, Finished)
            ]

    with pytest.raises(DeterminismBroken, match=r"(?s)two log-probabilities.*-1\.5\n.*-1\.5000000000000002"):
        run_canaries(Rounding(), CANARIES)


def test_every_prompt_is_asked_alone() -> None:
    class Counting(EchoEngine):
        batches: list[int] = []  # noqa: RUF012

        def step(self) -> Sequence[Outcome]:
            self.batches.append(len(self.held))
            return super().step()

    engine = Counting()
    run_canaries(engine, CANARIES)
    assert engine.batches == [1, 1, 5]


def test_what_an_engine_does_not_accept_is_one_line_without_values() -> None:
    class Settings(BaseModel):
        max_num_seqs: int

    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"max_num_seqs": "a secret"})
    line = describe_refusal(refused.value)
    assert line.startswith("max_num_seqs: Input should be a valid integer")
    assert "secret" not in line
    assert describe_refusal(ValueError("no such\n  dtype")) == "no such dtype"


def test_a_renewed_worker_serves_only_its_new_epoch_with_the_engine_that_it_has() -> None:
    engine = EchoEngine()
    engine.may_step.clear()
    worker = Worker(engine, epoch=1)
    worker.start()
    worker.feed(ask(1, 2))
    waiting: list[Delivery] = []
    caller = threading.Thread(target=lambda: waiting.append(worker.collect(60, epoch=1)))
    caller.start()
    engine.may_step.set()
    caller.join(10)
    assert {outcome.ordinal for outcome in waiting[0].outcomes} == {1, 2}

    caller = threading.Thread(target=lambda: waiting.append(worker.collect(60, epoch=1)))
    caller.start()
    threads: list[str] = []
    assert worker.renew(2, lambda same: (threads.append(threading.current_thread().name), same)[1]) is engine
    assert threads == ["engine-loop"], "an engine is used by one thread"
    caller.join(10)
    assert waiting[1].outcomes == (), "who waited for the earlier epoch is sent away with nothing"
    worker.feed(ask(3))
    assert [outcome.ordinal for outcome in worker.collect(0.3, epoch=1).outcomes] == []
    assert [outcome.ordinal for outcome in worker.collect(10, epoch=2).outcomes] == [3]
    worker.stop(10)
    assert engine.closed


def test_a_worker_whose_renewal_fails_says_why_and_goes_on() -> None:
    engine = EchoEngine()
    worker = Worker(engine)
    worker.start()

    def refuse(engine: object) -> None:
        raise UsageError("structured: no")

    with pytest.raises(UsageError, match="structured: no"):
        worker.renew(1, refuse)
    assert worker.renew(2, lambda engine: "yes") == "yes"
    worker.feed(ask(666))
    while worker.collect(0.1, epoch=2).error is None:
        pass
    with pytest.raises(RuntimeError, match="the device is gone"):
        worker.renew(3, lambda engine: None)


def test_a_worker_that_dies_or_stops_in_the_middle_of_a_renewal_does_not_leave_the_caller_waiting() -> None:
    for ordinal, ends in ((666, "the device is gone"), (1, "stopped")):
        engine = EchoEngine()
        engine.may_step.clear()
        worker = Worker(engine)
        worker.start()
        worker.feed(ask(ordinal))
        while not engine.begun:
            time.sleep(0.01)
        errors: list[BaseException] = []

        def renew(worker: Worker = worker, errors: list[BaseException] = errors) -> None:
            try:
                worker.renew(1, lambda engine: None)
            except RuntimeError as exc:
                errors.append(exc)

        caller = threading.Thread(target=renew)
        caller.start()
        while not worker._renewal:
            time.sleep(0.01)
        if ordinal == 1:
            threading.Thread(target=worker.stop, args=(10,)).start()
            while not worker._stopping:
                time.sleep(0.01)
        engine.may_step.set()
        caller.join(10)
        assert not caller.is_alive()
        assert ends in str(errors[0])
