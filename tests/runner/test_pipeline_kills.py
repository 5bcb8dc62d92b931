"""A pipeline over thirty kills at random moments, under Ray, with other workers each time."""

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, write_jsonl

KILLS = 30
ROWS = 40
IN_FLIGHT = 2
"""Requests of a scripted engine with max_num_seqs=1."""
FILE = """\
name: judged
engine: {kind: scripted, max_num_seqs: 1, latency_ms: 40}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id, keep_columns: [topic]}
    num_samples: 2
    accept: response | words | length >= 6
    max_candidates: 30
    engine: {call_log: calls-answer}
  - name: judge
    input: {prompt_template: judge.j2}
    engine: {call_log: calls-judge}
  - name: keep
    select: {where: answer.candidates < 9, best: judge.completion_tokens}
"""


def read_content(root: Path) -> dict[str, bytes]:
    patterns = ("**/*.parquet", "**/manifest.json", "**/README.md")
    found = [path for pattern in patterns for path in root.glob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def count_calls() -> Counter[str]:
    """Return how often each answer was asked for, by stage, sample and candidate."""
    lines = [
        f"{log.name} {line}" for log in sorted(Path().glob("calls-*")) for line in log.read_text().split()
    ]
    return Counter(lines)


@pytest.mark.timeout(1800)
@pytest.mark.exhaustive("a pipeline over thirty kills under Ray, not over six")
def test_thirty_kills_under_ray_change_no_byte_and_repeat_no_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthia: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "xyz"[n % 3]} for n in range(ROWS)]
    write_jsonl(Path("q.jsonl"), rows)
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    Path("judged.yaml").write_text(FILE)
    whole = synthia("run", "judged.yaml", "-q", "-o", "whole", "--pool", "local")
    assert whole.returncode == 0, whole.stderr
    made = count_calls()
    assert set(made.values()) == {1}
    for log in Path().glob("calls-*"):
        log.unlink()
    chance, killed = random.Random(23), 0
    for attempt in range(KILLS):
        workers = 1 + attempt % 2
        before = count_calls()
        command = command_of("run", "judged.yaml", "-q", "-o", "killed", "--workers", str(workers))
        child = subprocess.Popen(
            command, env=make_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wanted = before.total() + chance.randint(1, 2 * made.total() // KILLS)
        while child.poll() is None and count_calls().total() < wanted:
            time.sleep(0.02)
        killed += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        repeated = before & (count_calls() - before)
        # What the engines of the attempt before, at most two, had not answered yet.
        assert repeated.total() <= 2 * IN_FLIGHT, (attempt, repeated)
    assert killed >= KILLS // 2
    done = synthia("run", "judged.yaml", "-q", "-o", "killed", "--pool", "ray")
    assert done.returncode == 0, done.stderr
    assert read_content(Path("killed")) == read_content(Path("whole"))
    assert set(count_calls()) == set(made)
