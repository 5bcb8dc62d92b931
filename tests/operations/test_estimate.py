"""What a job will take by some of its samples: known numbers in, known ranges out."""

import random
from typing import Any

import pytest

from synthia_batch.core.types import Failed, Finished, Record, Turn
from synthia_batch.operations.estimate import (
    Span,
    Speed,
    bound_rate,
    choose_speed,
    count_failures,
    list_lengths,
    predict_bytes,
    predict_seconds,
    predict_total,
    summarize_lengths,
)
from synthia_batch.scheduler.events import EngineLost, EngineReady, OutcomesRecorded, Progress
from synthia_batch.scheduler.throughput import ThroughputMeter


def finish(ordinal: int, tokens: int, reason: str = "stop") -> Finished:
    return Finished(
        ordinal=ordinal,
        response="x",
        reasoning=None,
        finish_reason=reason,
        prompt_tokens=5,
        completion_tokens=tokens,
    )


def make_speed(**values: Any) -> Speed:
    known = {
        "samples": 100,
        "tokens": 10_000,
        "seconds": 10.0,
        "startup_seconds": 30.0,
        "engines": 2,
        "occupancy": 0.5,
    }
    return Speed(**{**known, **values})


def test_lengths_and_failures_are_those_of_the_samples() -> None:
    outcomes = [finish(n, n + 1, "length" if n >= 90 else "stop") for n in range(100)]
    failed = [Failed(ordinal=100 + n, code="prompt_too_long", message="") for n in range(3)]
    rare = Failed(ordinal=200, code="engine_error", message="")
    lengths = summarize_lengths([*outcomes, *failed])
    assert lengths is not None
    assert lengths.quantiles == {
        "shortest": 1, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "longest": 100,
    }  # fmt: skip
    assert (lengths.samples, lengths.mean, lengths.truncated) == (100, 50.5, 0.1)
    assert list(count_failures([rare, *failed, *outcomes]).items()) == [
        ("prompt_too_long", 3),
        ("engine_error", 1),
    ]
    assert list_lengths([outcomes[6], rare]) == [7, 0]
    assert summarize_lengths(failed) is None


def test_answers_of_one_length_leave_nothing_open() -> None:
    assert predict_total([7] * 20, 1000, 99) == Span(low=7000, high=7000)


def test_nothing_left_is_nothing() -> None:
    assert predict_total([], 0, 99) == Span(low=0, high=0)
    assert predict_seconds(Span(low=0, high=0), make_speed()) == Span(low=0, high=0)


def test_a_few_samples_say_only_what_the_limit_says() -> None:
    assert predict_total([5] * 9, 100, 64) == Span(low=0, high=6400)
    assert predict_total([], 100, 64) == Span(low=0, high=6400)


def test_the_range_of_a_large_job_is_that_of_the_mean() -> None:
    lengths = [10] * 100 + [30] * 100  # mean 20, deviation 10: the mean's own is 10 / sqrt(200) = 0.707
    span = predict_total(lengths, 1_000_000, 64)
    assert span.low == pytest.approx(1e6 * (20 - 1.645 * 0.707), rel=0.01)
    assert span.high == pytest.approx(1e6 * (20 + 1.645 * 0.707), rel=0.01)
    assert predict_total(lengths, 1_000_000, 64) == span


def test_nine_of_ten_totals_are_in_the_range() -> None:
    draw = random.Random(7)
    population = [min(256, round(draw.expovariate(1 / 80)) + 1) for _ in range(3000)]
    inside = 0
    for _ in range(60):
        draw.shuffle(population)
        known, others = population[:200], population[200:]
        span = predict_total(known, len(others), 256)
        inside += span.low <= sum(others) <= span.high
    assert 47 <= inside <= 60, "54 are expected"


def test_the_rate_lies_between_the_measured_and_that_of_full_engines() -> None:
    assert bound_rate(make_speed()) == Span(low=1000, high=2000)
    assert bound_rate(make_speed(occupancy=1.0)) == Span(low=1000, high=1000)


def test_time_has_one_start_up_and_both_ends() -> None:
    span = predict_seconds(Span(low=100_000, high=200_000), make_speed())
    assert span == Span(low=30 + 100_000 / 2000, high=30 + 200_000 / 1000)
    assert span.scale(2 / 3600).high == pytest.approx(2 * 230 / 3600)


def test_the_latest_speed_counts_unless_it_is_of_few_samples() -> None:
    old, new, tiny = make_speed(samples=200), make_speed(samples=100, engines=4), make_speed(samples=3)
    assert choose_speed([old, new, tiny]) == new
    assert choose_speed([new, old]) == old
    assert choose_speed([]) is None
    assert choose_speed([make_speed(tokens=0)]) is None, "every sample failed"


def test_what_every_file_has_is_not_counted_with_every_row() -> None:
    assert predict_bytes({100: 5000 + 100 * 300, 200: 5000 + 200 * 300}, 10_000, 3) == 3 * 5000 + 10_000 * 300
    assert predict_bytes({1: 6000}, 10, 1) == 60_000


def load(worker: int, capacity: int) -> EngineReady:
    return EngineReady(worker=worker, epoch=1, engine="x 1", device="d", capacity=capacity)


def lose(worker: int) -> EngineLost:
    return EngineLost(
        worker=worker, unfinished=0, cause="died", epoch=1, is_given_up=False, reason="", log_tail=""
    )


def record(*records: Record) -> OutcomesRecorded:
    return OutcomesRecorded(records=records)


def report_progress(samples: int, tokens: int) -> Progress:
    return Progress(
        elapsed_seconds=1.0, samples=samples, tokens=tokens, prompt_tokens=0, cached_prompt_tokens=0,
        truncated=0, failures={}, workers=(),
    )  # fmt: skip


def test_the_meter_counts_the_places_that_were_filled() -> None:
    now = [100.0]
    meter = ThroughputMeter(4, started=90.0, clock=lambda: now[0])
    meter.observe(load(0, 2))
    now[0] = 110.0  # one engine of two: 2 of 4 places for 10 s
    meter.observe(load(1, 2))
    now[0] = 120.0  # both are full for 10 s
    meter.observe(record(finish(0, 30), finish(1, 30)))
    turn = Turn(ordinal=2, number=0, response="", finish_reason="", prompt_tokens=1, completion_tokens=9)
    meter.observe(record(turn))
    now[0] = 130.0  # 2 of 4 for 10 s
    meter.observe(record(finish(2, 30), finish(3, 30)))
    now[0] = 150.0  # and what comes after the last sample is no part of it
    meter.observe(report_progress(4, 120))
    speed = meter.measure()
    assert speed == Speed(
        samples=4, tokens=120, seconds=30.0, startup_seconds=10.0, engines=2, occupancy=80 / 120
    )
    assert (speed.tokens_per_second, speed.samples_per_second) == (4.0, 4 / 30)
    assert (speed.kind, Speed(**speed.fields)) == ("speed_measured", speed)


def test_an_engine_that_is_lost_has_no_places() -> None:
    now = [0.0]
    meter = ThroughputMeter(4, started=0.0, clock=lambda: now[0])
    meter.observe(load(0, 1))
    meter.observe(load(1, 1))
    now[0] = 10.0
    meter.observe(lose(1))
    now[0] = 20.0
    meter.observe(record(finish(0, 5)))
    meter.observe(report_progress(1, 5))
    speed = meter.measure()
    assert speed is not None
    assert (speed.occupancy, speed.engines) == (30 / 40, 2)


def test_where_no_engine_made_anything_nothing_is_measured() -> None:
    meter = ThroughputMeter(4, started=0.0)
    meter.observe(report_progress(0, 0))
    assert meter.measure() is None
