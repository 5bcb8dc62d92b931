"""The job's own Ray has a token of its own, which is in no file that others may read."""

import os
from pathlib import Path

import pytest
from conftest import Command, run_probe, write_jsonl

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


@pytest.mark.machine
def test_another_ray_starts_in_the_process_of_one_that_has_ended(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from ray.cluster_utils import Cluster\n"
        "from synthia_batch.job.resolved import PoolSpec\n"
        "from synthia_batch.workers.pools.ray_session import RaySession\n"
        "session = RaySession(PoolSpec(kind='ray', workers=1, ray_address=None, watchdog_seconds=60,\n"
        "    load_timeout_seconds=60))\n"
        "session.open()\n"
        "session.close()\n"
        "print([name for name in os.environ if name.startswith('RAY_AUTH')])\n"
        "options = {'num_cpus': 1, 'include_dashboard': False}\n"
        "Cluster(initialize_head=True, head_node_args=options).shutdown()\n"
    )
    assert run_probe(code, HOME=str(tmp_path)) == ["[]"]
