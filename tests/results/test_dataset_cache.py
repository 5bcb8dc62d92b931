"""`datasets.load_dataset(DIR)` gives the rows that are in DIR now, whatever its cache holds."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Command, make_environment, write_jsonl

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q")
LOAD = """
import datasets, json, sys
directory, config, mode = sys.argv[1:]
split = {"default": "train", "failed": "failed"}[config]
rows = datasets.load_dataset(directory, config, split=split, download_mode=mode)
print(json.dumps([list(rows["id"]), list(rows["response" if config == "default" else "code"])]))
"""
MODES = ("reuse_dataset_if_exists", "force_redownload")


def load(directory: Path, cache: Path, *, config: str = "default", mode: str = MODES[0]) -> list[list[str]]:
    """Return ids and answers (codes of failed samples) as the datasets library loads them."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(directory), config, mode],
        env=make_environment(HF_HOME=str(cache), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded: list[list[str]] = json.loads(done.stdout)
    return loaded


def read(directory: Path, *, config: str = "default") -> list[list[str]]:
    """Return the same from the files."""
    folder, column = ("data", "response") if config == "default" else ("failed", "code")
    table = pq.read_table(directory / folder)
    return [table["id"].to_pylist(), table[column].to_pylist()]


@pytest.mark.parametrize("mode", MODES)
def test_a_retried_run_loads_its_new_rows(mode: str, synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Number {n}?"} for n in range(9)])
    out, cache = tmp_path / "out", tmp_path / "cache"
    fails = ("--set", "engine.fail_every=3", "--set", f"engine.fail_while_missing={tmp_path / 'up'}")
    assert synthia("run", source, *SCRIPTED, "-o", out, *fails).returncode == 0
    before = load(out, cache)
    assert before == read(out)
    assert load(out, cache, config="failed") == read(out, config="failed")
    (tmp_path / "up").touch()
    assert synthia("retry", out, "-q").returncode == 0
    after = load(out, cache, mode=mode)
    assert after == read(out)
    assert len(after[0]) > len(before[0])


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_in_directories_of_one_name_load_their_own_rows(
    mode: str, synthia: Command, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    # As many rows of as many bytes: only their content differs.
    for place, word in (("a", "east"), ("b", "west")):
        (tmp_path / place).mkdir()
        source = write_jsonl(tmp_path / place / "q.jsonl", [{"prompt": f"{word} {n}?"} for n in range(4)])
        out = tmp_path / place / "out"
        assert synthia("run", source, *SCRIPTED, "-o", out).returncode == 0
    for place in ("a", "b", "a"):
        assert load(tmp_path / place / "out", cache, mode=mode) == read(tmp_path / place / "out")
