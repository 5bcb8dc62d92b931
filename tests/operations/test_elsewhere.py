"""A look at a job that another machine will run: nothing of its model is here."""

import json
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, ROOT, write_jsonl

from synthia_batch.cli.app import app
from synthia_batch.errors import ModelElsewhere, ModelUnavailable
from synthia_batch.models.weights import weigh_model
from synthia_batch.runner.resolve import model_selection

pytestmark = NEEDS_VLLM
LARGE = str(ROOT / "jobs" / "synthia-70b.yaml")


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory on a machine with little memory, no GPUs and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_selection, "total_memory_bytes", lambda: 8 * 10**9)
    monkeypatch.setattr(model_selection, "detect_device", lambda: "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_a_job_for_another_machine_is_valid(
    laptop: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="synthia_batch"):
        app(["validate", LARGE], standalone_mode=False)
    assert "28 rows, no faults" in capsys.readouterr().out
    assert "its weights take 138 GB, this machine has 8 GB of memory" in caplog.text
    assert "what depends on its files is unknown here (--here refuses" in caplog.text


def test_its_plan_names_what_is_unknown(laptop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["plan", LARGE], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("unknown here: ")] == [
        "unknown here: directory and fingerprint, which depend on the model's files",
        "unknown here: prompts in tokens, and which are too long",
        "unknown here: whether the engines fit",
    ]
    assert "samples: 112" in lines
    assert not [line for line in lines if line.startswith(("directory:", "fingerprint:", "rows too long:"))]
    app(["plan", LARGE, "--json"], standalone_mode=False)
    plan = json.loads(capsys.readouterr().out)
    assert plan["prompt_unit"] == "bytes"
    assert plan["settings"]["model.max_model_len"]["value"] == 4096
    assert plan["settings"]["engine.device"] == {"value": "cuda", "origin": "another machine"}
    assert "resolved" not in plan["settings"]["output"]


@pytest.mark.parametrize("command", ["plan", "validate"])
def test_whether_this_machine_can_run_it_is_asked_with_here(laptop: Path, command: str) -> None:
    with pytest.raises(ModelElsewhere, match="its weights take 138 GB"):
        app([command, LARGE, "--here"], standalone_mode=False)


def test_a_run_is_refused_as_ever(laptop: Path) -> None:
    with pytest.raises(ModelElsewhere, match="nothing was fetched"):
        app(["run", LARGE], standalone_mode=False)


def test_a_model_that_is_nowhere_is_refused(laptop: Path) -> None:
    source = write_jsonl(laptop / "q.jsonl", [{"question": "Why?"}])
    with pytest.raises(ModelUnavailable, match="no such directory") as caught:
        app(["plan", str(source), "-m", "./nothing"], standalone_mode=False)
    assert not isinstance(caught.value, ModelElsewhere)


def make_safetensors(path: Path, tensor_bytes: int) -> Path:
    header = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    path.mkdir()
    (path / "config.json").write_text("{}")
    whole = len(header).to_bytes(8, "little") + header + bytes(tensor_bytes)
    (path / "model.safetensors").write_bytes(whole)
    return path


def test_weights_that_are_cut_off_are_told_by_their_header(tmp_path: Path) -> None:
    whole = make_safetensors(tmp_path / "whole", 8)
    size = (whole / "model.safetensors").stat().st_size
    assert weigh_model(str(whole), None, "cpu").weights_bytes == size
    cut = make_safetensors(tmp_path / "cut", 5)
    with pytest.raises(
        ModelUnavailable, match=f"it has {size - 3} bytes, and {size} according to its header"
    ):
        weigh_model(str(cut), None, "cpu")
    (cut / "model.safetensors").write_bytes(b"<html>no</html>" * 9)
    with pytest.raises(ModelUnavailable, match="not a safetensors file"):
        weigh_model(str(cut), None, "cpu")
