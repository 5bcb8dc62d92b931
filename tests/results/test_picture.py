"""The picture of a run at its end: exact in a wide terminal, and nowhere else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command, write_jsonl
from terminals import open_terminal

from synthia_batch.cli.picture import show_picture
from synthia_batch.results.read.history import AttemptSummary, Interval, Loading, RunHistory
from synthia_batch.results.report.picture import ASCII, UNICODE, Symbols, draw_picture
from synthia_batch.results.report.summary import RunNumbers, read_report, read_run_numbers
from synthia_batch.runner.monitoring.result import RunResult

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-o", "out", "--max-tokens", "12")
HISTORY = RunHistory(
    attempts=[
        [Interval(start=30.0, end=90.0, tokens_per_second=100.0, busy_engines=1.0)],
        [
            Interval(start=120.0, end=150.0, tokens_per_second=200.0, busy_engines=1.0),
            Interval(start=150.0, end=180.0, tokens_per_second=50.0, busy_engines=1.0),
        ],
    ],
    resumes=[90.0],
    loadings=[Loading(start=0.0, end=30.0), Loading(start=90.0, end=120.0)],
)


@pytest.fixture
def numbers(tmp_path: Path, synthia: Command) -> RunNumbers:
    """Those of 100 answers, some of which are cut off at 12 tokens."""
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(100)])
    done = synthia("run", source, *SCRIPTED)
    assert done.returncode == 0, done.stderr
    assert "median" not in done.stderr, "down a pipe goes no picture"
    return replace(read_run_numbers(tmp_path / "out"), history=RunHistory())


@pytest.mark.parametrize("place", ["report.picture.draw_picture", "report.summary.read_run_numbers"])
def test_an_interrupt_while_it_is_drawn_is_not_one_of_the_run(
    place: str, numbers: RunNumbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    counts = {"samples": 100, "finished": 100, "failed": 0, "made": 100, "seconds": 1.0}
    result = RunResult(directory=tmp_path / "out", max_failures=None, drained=None, **counts)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(f"synthia_batch.results.{place}", interrupt)
    show_picture(result)
    monkeypatch.undo()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("synthia_batch.cli.picture._draw", lambda *_: ["a line"])
    monkeypatch.setattr("synthia_batch.cli.picture.show", lambda *_, **__: interrupt())
    show_picture(result)


def make_attempt(tokens: int, seconds: float) -> AttemptSummary:
    return AttemptSummary(
        number=1, began="", host="", engines=(), workers_lost=0, made=1, tokens=tokens, seconds=seconds,
        generating_seconds=seconds, end="done",
    )  # fmt: skip


def test_the_lengths_of_answers_and_their_limit_are_drawn(numbers: RunNumbers) -> None:
    assert draw_picture(numbers, 100, UNICODE) == [
        "100 answers, 54% at the limit",
        "                                 ███│",
        "                                 ███│",
        "                                 ███│",
        "                                 ███│",
        "▃▃▃▄▄▄▁▁▁▄▄▄▃▃▃▂▂▂▄▄▄▄▄▄▅▅▅▁▁▁▃▃▃███│",
        "1                          12 tokens",
        "median 12, longest 12, limit 12",
    ]


def test_speed_is_drawn_beside_them_and_loading_apart(numbers: RunNumbers) -> None:
    timed = replace(numbers, history=HISTORY, attempts=[make_attempt(6000, 60.0), make_attempt(7500, 60.0)])
    assert [line[49:] for line in draw_picture(timed, 100, ASCII)] == [
        "tokens/s, ~ loading 60 s",
        "                                 #########",
        "                                 #########",
        "        :::::::::::::::::        #########",
        "        #################        #########........",
        "~~~~~~~~#################~~~~~~~~#################",
        "0                                            3 min",
        "mean 112, highest 200",
    ]
    for columns in (80, 100, 200):
        lines = draw_picture(timed, columns, UNICODE)
        assert len(lines) == 8
        assert max(map(len, lines)) < columns
    assert draw_picture(timed, 79, UNICODE) == []


def test_a_run_without_answers_has_no_picture(tmp_path: Path, synthia: Command) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "What is 1?"}])
    synthia("run", source, *SCRIPTED, "--set", "engine.fail_every=1")
    assert draw_picture(read_run_numbers(tmp_path / "out"), 100, UNICODE) == []


def test_its_numbers_are_those_of_the_report(numbers: RunNumbers, tmp_path: Path, synthia: Command) -> None:
    report = replace(read_report(tmp_path / "out"), history=RunHistory())
    assert draw_picture(report, 100, UNICODE) == draw_picture(numbers, 100, UNICODE)
    told = json.loads(synthia("report", "out", "--json").stdout)
    lengths, bins = told["completion_tokens"], told["completion_histogram"]
    told_line = f"median {lengths['median']}, longest {lengths['longest']}, limit {bins['limit']}"
    assert draw_picture(numbers, 100, UNICODE)[-1] == told_line


@pytest.mark.parametrize(
    ("columns", "encoding", "symbols"),
    [(100, "utf-8", UNICODE), (100, "ascii", ASCII), (70, "utf-8", None)],
    ids=["wide", "without Unicode", "narrow"],
)
def test_a_terminal_shows_it_before_the_last_messages(
    columns: int, encoding: str, symbols: Symbols | None, numbers: RunNumbers, tmp_path: Path
) -> None:
    (tmp_path / "twice").mkdir()
    job = ("run", tmp_path / "q.jsonl", *SCRIPTED)
    home = tmp_path / "twice"
    with open_terminal(*job, directory=home, columns=columns, PYTHONIOENCODING=encoding) as seen:
        assert seen.wait_for_end() == 0
    # Where the machine was slow enough, its speed stands beside them.
    shown = [line[:46].rstrip() for line in seen.lines]
    end = next(at for at, line in enumerate(shown) if line.startswith("complete: "))
    if symbols is None:
        assert not {line for line in shown if "median" in line or "answers" in line}
    else:
        assert shown[end - 8 : end] == draw_picture(numbers, 100, symbols)


def test_whoever_wants_it_quiet_gets_none(numbers: RunNumbers, tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    job = ("run", tmp_path / "q.jsonl", *SCRIPTED, "-q")
    with open_terminal(*job, directory=tmp_path / "twice") as seen:
        assert seen.wait_for_end() == 0
    assert "median" not in seen.raw


def test_each_stage_of_a_pipeline_that_generates_has_one(numbers: RunNumbers, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "engine: {kind: scripted}\npool: {kind: local}\nstages:\n"
        "  - name: answer\n    input: {path: q.jsonl}\n    sampling: {max_tokens: 12}\n"
        "  - name: keep\n    select: {limit: 10}\n"
    )
    with open_terminal("run", "two.yaml", "-o", "pipeline", directory=tmp_path) as seen:
        assert seen.wait_for_end() == 0
    shown = [line[:46].rstrip() for line in seen.lines]
    begin = next(at for at, line in enumerate(shown) if line.startswith("answer: 100 of 100"))
    assert shown[begin + 1 : begin + 9] == draw_picture(numbers, 100, UNICODE)
    assert shown[begin + 9].startswith("keep: 10 of 100 samples kept")
