"""The pure parts of the benchmarks: numbers, tables, and the picture of a run. Nothing here is timed."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot_run
from benchmarks.throughput.measures import (
    Measured,
    choose_best,
    find_busy_shares,
    find_ratio,
    take_medians,
)
from benchmarks.throughput.process import MARK, run_process
from benchmarks.throughput.report import Target, write_failures, write_ratios, write_raw, write_sides
from benchmarks.throughput.workload import LIMITS_COLUMN, MODEL_SHAPES, draw_limits, write_questions
from synthia_batch.results.read.history import read_history, read_progress


def measure(side: str, number: int, seconds: float, **more: Any) -> Measured:
    return Measured(
        side=side, number=number, status="ok", seconds=seconds, answers=4, output_tokens=100, **more
    )


ROUNDS = [
    measure("ours", 1, 10.0, generating_seconds=5.0),
    measure("bare", 1, 8.0, generating_seconds=4.0),
    measure("ours", 2, 30.0, generating_seconds=5.0),
    measure("bare", 2, 10.0, generating_seconds=5.0),
    measure("ours", 3, 12.0, generating_seconds=10.0),
    Measured(side="bare", number=3, status="failed", reason="exit code 1\nno memory", seconds=2.0),
]


def test_a_failed_round_is_in_no_median_and_in_no_ratio() -> None:
    assert take_medians(ROUNDS, "seconds") == {"ours": 12.0, "bare": 9.0}
    ratio = find_ratio(ROUNDS, "seconds", "ours", "bare")
    assert ratio is not None
    assert (round(ratio.value, 3), ratio.least, ratio.most) == (1.333, 1.25, 3.0)
    assert find_ratio(ROUNDS, "seconds", "ours", "nobody") is None
    assert find_ratio(ROUNDS, "first_seconds", "ours", "bare") is None


def test_the_best_variant_is_the_one_that_was_done_soonest_and_did_not_fail() -> None:
    failed = Measured(side="c", number=0, status="failed", seconds=1.0)
    best = measure("b", 0, 2.0)
    assert choose_best([measure("a", 0, 3.0), best, failed]) is best
    assert choose_best([failed]) is None


def test_the_tables_tell_every_side_every_failure_and_every_verdict() -> None:
    sides = write_sides(ROUNDS).splitlines()
    assert sides[2] == "| ours | 12.0 | not known | not known | 20.0 | 100 |  | 3 |"
    assert sides[3].endswith("| 2 of 3 |")
    ratios = write_ratios(
        ROUNDS,
        [
            Target(of="ours", by="bare", attribute="tokens_per_second", bound=0.97, is_least=True),
            Target(of="ours", by="bare", attribute="seconds", bound=2),
            Target(of="ours", by="nobody", attribute="seconds", bound=2),
        ],
    ).splitlines()
    assert ratios[2] == "| ours : bare | tokens/s | 0.889 | 0.800 to 1.000 | at least 0.97 | **missed** |"
    assert ratios[3].endswith("| at most 2 | met |")
    assert len(ratios) == 4
    assert "no memory" in write_failures(ROUNDS)
    assert json.loads(write_raw(ROUNDS).splitlines()[0])["tokens_per_second"] == 20.0


def test_a_side_that_never_succeeded_still_has_its_row() -> None:
    table = write_sides([Measured(side="peer", number=1, status="not run", reason="no GPU")])
    assert "| peer | not run |" in table


def make_progress(second: int, samples: int, busy: list[float], minute: int = 0) -> dict[str, Any]:
    return {
        "time": f"2026-11-21T10:{minute:02}:{second:02}.000+00:00",
        "kind": "progress",
        "elapsed_seconds": float(second),
        "samples": samples,
        "tokens": samples * 50,
        "prompt_tokens": samples * 100,
        "cached_prompt_tokens": 0,
        "workers": [{"worker": n, "busy_seconds": seconds, "in_flight": 3} for n, seconds in enumerate(busy)],
    }


def make_event(kind: str, second: int, minute: int = 0, **fields: Any) -> dict[str, Any]:
    return {"time": f"2026-11-21T10:{minute:02}:{second:02}.000+00:00", "kind": kind, **fields}


EVENTS = [
    make_event("attempt_started", 0),
    make_progress(2, 0, [1.0, 0.0]),
    make_progress(4, 10, [3.0, 1.0]),
    make_event("worker_lost", 5, worker=1),
    make_progress(6, 30, [5.0, 0.5]),
    make_event("attempt_started", 0, minute=1),
    make_progress(2, 5, [1.0, 1.5], minute=1),
    make_progress(12, 45, [10.8, 6.5], minute=1),
    make_progress(22, 45, [11.0, 6.5], minute=1),
]


def test_busy_shares_are_of_the_last_attempt_between_its_first_and_its_last_sample() -> None:
    shares = find_busy_shares(read_progress(EVENTS))
    assert {worker: round(share, 2) for worker, share in shares.items()} == {0: 0.98, 1: 0.5}
    assert find_busy_shares([]) == {}
    assert find_busy_shares(read_progress(EVENTS[:2])) == {}


def test_a_busy_share_is_of_the_time_until_the_worker_was_heard() -> None:
    events = [make_event("attempt_started", 0), make_progress(2, 1, [1.0]), make_progress(12, 9, [5.5])]
    events[2]["workers"][0]["heard_seconds"] = 7.0
    assert find_busy_shares(read_progress(events)) == {0: 0.9}


def test_a_history_marks_losses_and_resumes_and_draws_no_line_between_attempts() -> None:
    history = read_history(EVENTS)
    assert (history.losses, history.resumes) == ([5.0], [60.0])
    first, second = history.attempts
    assert [(one.start, one.end, one.tokens_per_second, one.busy_engines) for one in first] == [
        (2.0, 4.0, 250.0, 1.5),
        (4.0, 6.0, 500.0, 1.25),  # the second worker began again: its half second counts
    ]
    assert [(one.start, one.end, one.tokens_per_second) for one in second] == [
        (62.0, 72.0, 200.0),
        (72.0, 82.0, 0.0),
    ]


def test_the_same_history_gives_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "run" / ".synthia"
    hidden.mkdir(parents=True)
    (hidden / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    pictures = []
    for name in ("a.svg", "b.svg"):
        arguments = ["plot_run.py", str(tmp_path / "run"), "-o", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", arguments)
        plot_run.main()
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert b"<svg" in pictures[0]


def test_a_history_without_progress_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["plot_run.py", str(tmp_path), "-o", str(tmp_path / "a.svg")])
    with pytest.raises(SystemExit, match="fewer than two progress events"):
        plot_run.main()


def test_every_prompt_of_a_workload_is_another_and_always_the_same(tmp_path: Path) -> None:
    for limits in (None, draw_limits(600, 512)):
        path = write_questions(tmp_path / "q.jsonl", 600, limits)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len({row["question"] for row in rows}) == 600
        assert [row.get(LIMITS_COLUMN, {}).get("max_tokens") for row in rows] == (limits or [None] * 600)
        before = path.read_bytes()
        assert write_questions(path, 600, limits).read_bytes() == before


def test_limits_are_drawn_from_all_lengths_and_always_the_same() -> None:
    limits = draw_limits(6000, 512)
    assert (min(limits), max(limits)) == (8, 512)
    assert set(limits) == set(range(8, 513))
    assert draw_limits(600, 512) == limits[:600]


def test_a_side_that_hangs_is_ended() -> None:
    ended = run_process(
        [sys.executable, "-c", "import time; time.sleep(600)"], {}, lambda: False, timeout_seconds=1
    )
    assert ended.code == -9
    assert ended.seconds < 60


def test_nothing_that_a_side_started_outlives_it() -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True)\n"
    )
    ended = run_process([sys.executable, "-c", script], {}, lambda: False, timeout_seconds=60)
    assert ended.code == 0
    assert ended.find_time("child") is not None
    status = Path(f"/proc/{ended.tail(1).split()[-1]}/stat")
    deadline = time.monotonic() + 30
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_a_side_gets_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHIA_BATCH_SAMPLING__TOP_P", "0.5")
    script = "import os; print(*os.environ)"
    ended = run_process([sys.executable, "-c", script], {"OMP_NUM_THREADS": "1"}, lambda: False, 60)
    names = ended.tail(1).split()
    assert "SYNTHIA_BATCH_SAMPLING__TOP_P" not in names
    assert {"OMP_NUM_THREADS", MARK} <= set(names)


def test_dummy_shapes_are_whole() -> None:
    assert MODEL_SHAPES["llama-2-7b-dummy"]["num_hidden_layers"] == 32
    assert all(shape["hidden_size"] % shape["num_attention_heads"] == 0 for shape in MODEL_SHAPES.values())
