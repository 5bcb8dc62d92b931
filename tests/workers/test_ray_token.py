"""The job's own Ray has a token of its own, which is in no file that others may read."""

import os
from pathlib import Path

import pytest
from conftest import Command, write_jsonl

from synthia_batch.workers.pools.ray_session import _own_token


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_each_ray_has_another_token_that_lasts_while_it_starts() -> None:
    tokens = set()
    for _ in range(2):
        with _own_token():
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert "RAY_AUTH_TOKEN" not in os.environ
        os.environ["RAY_AUTH_MODE"] = "token"  # As Ray leaves it.
    assert (len(tokens), {len(token) for token in tokens}) == (2, {64})


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_TOKEN", "mine"), ("RAY_AUTH_TOKEN_PATH", "/mine"), ("RAY_AUTH_MODE", "disabled")],
)
def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with _own_token():
        assert os.environ[name] == value
        assert os.environ.get("RAY_AUTH_TOKEN") in (None, "mine")


@pytest.mark.machine
def test_a_run_leaves_no_token_behind(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    done = synthia(
        "run", "q.jsonl", "--engine", "scripted", "--workers", "1", "-o", "out", HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".ray").exists()
