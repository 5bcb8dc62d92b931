"""The command line in a real pseudo-terminal: what is seen, what Ctrl-C does, and what goes down a pipe."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, skip_input_lines, write_jsonl
from terminals import CONTROLS, Terminal, open_terminal

SCRIPTED = ("--engine", "scripted", "--pool", "local", "--workers", "2", "-o", "out")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def slow(latency_ms: int, batch: int = 2) -> tuple[str, ...]:
    return ("--set", f"engine.latency_ms={latency_ms}", "--set", f"engine.max_num_seqs={batch}")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A file of 80 questions in the test's directory, by its name alone: lines stay short."""
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(80)])
    return Path("q.jsonl")


@contextmanager
def running(questions: Path, home: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a run go on in the background, out of any terminal, until it has made something."""
    command = command_of("run", questions, *SCRIPTED, *flags, "-q")
    with subprocess.Popen(command, cwd=home, env=make_environment(), stderr=subprocess.DEVNULL) as run:
        journals = home / "out/.synthia/journal"
        while not any(path.stat().st_size > 200 for path in journals.glob("*.wal")):
            assert run.poll() is None
            time.sleep(0.05)
        yield run


def is_drawn_for(columns: int, draw: str) -> bool:
    return columns - 5 <= len(draw) <= columns


def test_a_bar_is_drawn_again_and_again_in_one_line(questions: Path, tmp_path: Path) -> None:
    flags = (*SCRIPTED, *slow(400), "--set", "engine.fail_every=30")
    with open_terminal("run", questions, *flags, directory=tmp_path) as terminal:
        terminal.wait_for(lambda: terminal.ended > 0)
        first = terminal.ended
        assert len(terminal.bars) == 1
        assert re.search(r"tokens/s, .* left, \d+ failed, 2 workers", terminal.bars[0]), terminal.bars
        terminal.wait_for(lambda: terminal.ended > first)
        assert len(terminal.bars) == 1, "drawn again in its place"
        terminal.wait_for(lambda: terminal.ended >= 60)
        failed = [line for line in terminal.lines if "scripted_failure" in line]
        assert re.fullmatch(r"q\.jsonl:(1|31|61): scripted_failure: failed as scripted", failed[0])
        assert terminal.lines.index(terminal.bars[0]) > terminal.lines.index(failed[-1]), "above the bar"
        assert terminal.wait_for_end() == 0
        assert len(terminal.bars) == 1
        assert "100%|" in terminal.bars[0]
        assert "80/80" in terminal.bars[0]
        assert "complete: 77 of 80 samples finished, 3 failed" in terminal.lines
        assert not CONTROLS.search(terminal.raw), "no colours to turn off"


def test_engines_that_load_are_seen(questions: Path, tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--set", "engine.load_seconds=2")
    with open_terminal("run", questions, *flags, directory=tmp_path) as terminal:
        terminal.wait_for("the engines are loading (0 of 2 workers, 2 loading)")
        assert terminal.wait_for_end() == 0


def test_ctrl_c_drains_and_the_next_call_goes_on(questions: Path, tmp_path: Path, synthia: Command) -> None:
    with open_terminal("run", questions, *SCRIPTED, *slow(500), directory=tmp_path) as terminal:
        terminal.wait_for(lambda: terminal.ended > 0)
        terminal.child.send("\x03")
        terminal.wait_for(" in flight, with 10 s to finish; Ctrl-C stops at once")
        assert terminal.wait_for_end() == 130
        drained = next(line for line in terminal.lines if line.startswith("drained on Ctrl-C"))
        assert any(line.startswith("resume with: synthia-batch run") for line in terminal.lines)
    finished = int(re.findall(r"(\d+) of 80 samples finished", drained)[0])
    assert 0 < finished < 80
    again = synthia("run", questions, *SCRIPTED, "--json")
    assert json.loads(again.stdout)["made_now"] == 80 - finished


def test_ctrl_c_twice_stops_at_once(questions: Path, tmp_path: Path, synthia: Command) -> None:
    with open_terminal("run", questions, *SCRIPTED, *slow(3000), directory=tmp_path) as terminal:
        terminal.wait_for(lambda: terminal.ended > 0)
        terminal.child.send("\x03")
        terminal.wait_for("Ctrl-C stops at once")
        terminal.child.send("\x03")
        assert terminal.wait_for_end() == 130
        assert any("stopped at once; finished samples are kept" in line for line in terminal.lines)
        assert "Traceback" not in terminal.raw
    assert json.loads(synthia("status", "out", "--json").stdout)["state"] == "interrupted"
    assert synthia("run", questions, *SCRIPTED).returncode == 0


def test_the_bar_takes_a_new_width_and_does_not_spill(questions: Path, tmp_path: Path) -> None:
    with open_terminal("run", questions, *SCRIPTED, *slow(300, 1), directory=tmp_path) as terminal:
        terminal.wait_for(lambda: terminal.ended > 0)
        assert is_drawn_for(100, terminal.bars[0])
        for columns in (60, 140, 40):
            terminal.resize(columns, 30)
            # What was on its way may still be as wide as before.
            terminal.wait_for(lambda: is_drawn_for(columns, terminal.draws[-1]))  # noqa: B023
            before = len(terminal.draws)
            terminal.wait_for(lambda: len(terminal.draws) > before + 5)  # noqa: B023
            assert all(is_drawn_for(columns, draw) for draw in terminal.draws[before:])
            assert len(terminal.bars) == 1, terminal.lines
        assert terminal.wait_for_end() == 0


def test_stdout_is_json_while_the_bar_is_on_the_terminal(questions: Path, tmp_path: Path) -> None:
    flags = (*SCRIPTED, *slow(200), "--json")
    with open_terminal("run", questions, *flags, directory=tmp_path, stdout="result.json") as terminal:
        terminal.wait_for(lambda: terminal.ended > 0)
        assert terminal.wait_for_end() == 0
        assert len(terminal.bars) == 1
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["state"], told["samples"], told["finished"]) == ("complete", 80, 80)


def test_down_a_pipe_go_lines_without_control_characters(questions: Path, synthia: Command) -> None:
    done = synthia("run", questions, *SCRIPTED, "--set", "engine.fail_every=30")
    assert done.returncode == 0
    assert done.stdout == "out\n"
    assert not CONTROL_CHARACTERS.search(done.stdout + done.stderr)
    told = [line for line in skip_input_lines(done.stderr).splitlines() if line.startswith("q.jsonl:")]
    assert len(told) == 3
    assert re.fullmatch(r"q\.jsonl:\d+: scripted_failure: failed as scripted", told[0])
    assert told[2].endswith("; from here on they are counted")
    assert "synthia-batch failed out" in done.stderr


@pytest.mark.parametrize("no_color", ["", "1"])
def test_there_is_no_colour_to_turn_off(questions: Path, tmp_path: Path, no_color: str) -> None:
    flags = (*SCRIPTED, *slow(100, 8))
    with open_terminal("run", questions, *flags, directory=tmp_path, NO_COLOR=no_color) as terminal:
        assert terminal.wait_for_end() == 0
        assert not CONTROLS.search(terminal.raw)


def count_samples(terminal: Terminal) -> int:
    return sum(line.startswith("samples ") for line in terminal.lines)


def test_status_watches_a_run_from_another_terminal_until_it_ends(questions: Path, tmp_path: Path) -> None:
    with (
        running(questions, tmp_path, *slow(1000)) as run,
        open_terminal("status", "out", "--watch", directory=tmp_path, columns=70) as terminal,
    ):
        terminal.wait_for(f"running (pid {run.pid} on ")
        # At once: on a busy machine the run may be over by the time that the rest was seen.
        terminal.wait_for("samples ")
        before = next(line for line in terminal.lines if line.startswith("samples "))
        terminal.wait_for("next      synthia-batch status out --watch")
        terminal.wait_for(lambda: any(re.match(r"workers   0   ready .*% busy", x) for x in terminal.lines))
        # In its place, once a look is drawn whole: what was read so far may end within one.
        terminal.wait_for(lambda: count_samples(terminal) == 1)
        terminal.wait_for(lambda: not any(line == before for line in terminal.lines))
        terminal.wait_for(lambda: count_samples(terminal) == 1)
        assert terminal.wait_for_end() == 0
        assert run.wait() == 0
        assert count_samples(terminal) == 1, "no earlier look is left standing"
        assert "q  complete, attempt 1" in terminal.lines
        assert "samples   80 of 80 (100.0%): 80 finished, 0 failed" in terminal.lines


def test_whoever_watches_leaves_with_ctrl_c_and_the_run_goes_on(questions: Path, tmp_path: Path) -> None:
    with (
        running(questions, tmp_path, *slow(400)) as run,
        open_terminal("status", "out", "--watch", directory=tmp_path) as terminal,
    ):
        terminal.wait_for("running (pid")
        terminal.child.send("\x03")
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.raw
        assert run.wait() == 0


def test_status_watched_down_a_pipe_is_a_line_per_look(
    questions: Path, tmp_path: Path, synthia: Command
) -> None:
    with running(questions, tmp_path, *slow(400, 1)):
        lines = synthia("status", "out", "--watch", NO_COLOR="1").stdout.splitlines()
    looks = [line for line in lines if " running " in line]
    assert len(looks) >= 2
    assert re.fullmatch(r"\d\d:\d\d:\d\d running \d+/80 \(\d+%\), .*0 failed.*", looks[-1])
    assert "q  complete, attempt 1" in lines
    assert not any(CONTROL_CHARACTERS.search(line) for line in lines)


def test_status_watched_as_json_is_an_object_per_look(
    questions: Path, tmp_path: Path, synthia: Command
) -> None:
    with running(questions, tmp_path, *slow(400, 1)):
        looks = [
            json.loads(line) for line in synthia("status", "out", "--watch", "--json").stdout.splitlines()
        ]
    assert len(looks) >= 2
    assert [look["state"] for look in looks[:-1]] == ["running"] * (len(looks) - 1)
    assert looks[-1]["state"] == "complete"
    counts = [look["finished"] for look in looks]
    assert counts == sorted(counts)
    assert looks[-1]["finished"] == 80
    assert {worker["state"] for worker in looks[-2]["workers"]} == {"ready"}
