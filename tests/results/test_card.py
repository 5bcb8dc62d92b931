"""The dataset card: what it says is in the files, what it tells to type works, no stranger writes in it."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, make_environment, read_bytes_of_data, write_jsonl
from hostile import MARK, make_hostile_run
from ruamel.yaml import YAML

from synthia_batch.models.checkpoint import read_licence
from synthia_batch.results.report.card import Licence
from synthia_batch.runner.directory.dataset_card import find_licence

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q")
ROWS = 1100


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two shards, two systems and some failures, cut off at 12 tokens."""
    home = tmp_path_factory.mktemp("card")
    source = write_jsonl(home / "q.jsonl", [{"prompt": f"Number {n}?", "topic": "sums"} for n in range(ROWS)])
    run_command(
        "run", source, *SCRIPTED, "-o", home / "out", "--max-tokens", "12", "-s", "synthia", "-s", "none",
        "--keep-columns", "topic", "--set", "engine.fail_every=50",
    )  # fmt: skip
    return home / "out"


def run_command(*arguments: str | Path, code: int = 0) -> None:
    command = [sys.executable, "-m", "synthia_batch", *map(str, arguments)]
    done = subprocess.run(command, env=make_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr


def read_card(dataset: Path) -> str:
    return (dataset / "README.md").read_text()


def read_head(card: str) -> Any:
    assert card.startswith("---\n")
    return YAML(typ="safe").load(card.split("---\n")[1])


def list_snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


@pytest.mark.parametrize("library", ["datasets", "pandas", "polars", "duckdb"])
def test_each_snippet_loads_all_rows(dataset: Path, library: str, tmp_path: Path) -> None:
    (snippet,) = [text for text in list_snippets(read_card(dataset)) if f"import {library}" in text][:1]
    rows = pq.read_table(dataset / "data").num_rows
    name = re.findall(r"^(\w+) = ", snippet, flags=re.MULTILINE)[0]
    script = f"{snippet}\nassert len({name}) == {rows}, len({name})\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=dataset,
        env=make_environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_snippet_for_failures_loads_them(dataset: Path, tmp_path: Path) -> None:
    (snippet,) = [text for text in list_snippets(read_card(dataset)) if '"failed"' in text]
    rows = pq.read_table(dataset / "failed").num_rows
    done = subprocess.run(
        [sys.executable, "-c", f"{snippet}\nassert len(failed) == {rows}\n"],
        cwd=dataset,
        env=make_environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_head_is_what_the_hub_reads(dataset: Path) -> None:
    head = read_head(read_card(dataset))
    assert head["size_categories"] == ["1K<n<10K"]
    assert [config["config_name"] for config in head["configs"]] == ["default", "failed"]
    # Whose text it is made of decides about that; see the card's own words.
    assert "license" not in head
    assert "language" not in head


def test_the_statistics_are_those_of_the_files(dataset: Path) -> None:
    card = read_card(dataset)
    rows = pq.read_table(dataset / "data").to_pylist()
    failed = pq.read_table(dataset / "failed").num_rows
    table = {
        cells[0]: cells[1:]
        for line in card.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in ("synthia", "none", "all")
        and len(cells) == 10
    }
    for system, cells in table.items():
        chosen = [row for row in rows if system in ("all", row["system"])]
        lengths = sorted(row["completion_tokens"] for row in chosen)
        cut = sum(row["finish_reason"] == "length" for row in chosen)
        assert cells[0] == f"{len(chosen):,}"
        assert cells[1].startswith(f"{cut:,} (")
        assert cells[2] == f"{sum(row['prompt_tokens'] for row in chosen):,}"
        assert cells[3] == f"{sum(lengths):,}"
        assert cells[6] == str(lengths[(len(lengths) + 1) // 2 - 1])
        assert cells[8] == str(lengths[-1])
    assert set(table) == {"synthia", "none", "all"}
    assert f"`scripted_failure` {failed}" in card
    assert f"{len(rows):,} samples that scripted made from 1,100 rows of q.jsonl; {failed} could not" in card
    for column in pq.read_schema(dataset / "data/train-00000-of-00002.parquet"):
        assert f"| {column.name} | `{column.type}` |" in card
    assert "| topic | `string` | kept from the input |" in card


def test_the_command_of_the_card_makes_the_same_dataset(dataset: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"```sh\nsynthia-batch (.*?)\n```", read_card(dataset))
    # What is no flag of its own stands beside it: the rehearsal's failures.
    assert "fail_every 50" in read_card(dataset)
    words = [str(dataset.parent / word) if word == "q.jsonl" else word for word in command.split()]
    again = tmp_path / "again"
    run_command(*words, "--pool", "local", "-q", "-o", again, "--set", "engine.fail_every=50")
    # But for the name that a job gets from its directory there is no difference, not in a byte.
    assert read_bytes_of_data(again) == read_bytes_of_data(dataset)


def test_a_card_says_nothing_of_when_where_and_how_often(dataset: Path, tmp_path: Path) -> None:
    import socket
    from datetime import date

    card = read_card(dataset)
    for word in (str(date.today().year) + "-", socket.gethostname() + " ", str(dataset.parent), "attempt"):
        assert word not in card, word


def test_a_run_of_nothing_but_failures_has_a_card(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "one"}])
    synthia("run", source, *SCRIPTED, "-o", "out", "--set", "engine.fail_every=1")
    card = read_card(tmp_path / "out")
    assert [config["config_name"] for config in read_head(card)["configs"]] == ["failed"]
    assert "## Statistics" not in card
    assert len(list_snippets(card)) == 1


def test_a_complete_run_with_the_card_of_an_earlier_version_is_complete(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Number {n}?"} for n in range(3)])
    run = ("run", source, *SCRIPTED, "-o", "out")
    assert synthia(*run).returncode == 0
    (tmp_path / "out" / "README.md").write_text("# q\n\n3 samples, said an earlier version.\n")
    assert synthia("verify", "out", "-q").returncode == 0
    again = synthia(*run)
    assert (again.returncode, "already complete" in again.stderr) == (0, True)


def test_strangers_texts_are_no_markup_of_the_card(tmp_path: Path) -> None:
    card = read_card(make_hostile_run(tmp_path))
    # In code there is no markup; whatever ends it is not in there.
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```sh\n.*?\n```", "", card, flags=re.DOTALL))
    assert MARK in outside
    assert "<" not in outside.replace("<br>", "").replace("1K<n", "").replace("n<1K", "")
    assert card.count("```") % 2 == 0
    assert read_head(card)["configs"][0]["config_name"] == "default"
    tables = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in tables), "a cell broke its line"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# M\n", "apache-2.0"),
        ("---\nlanguage: [en]\nlicense: other\nlicense_name: own-terms\n---\n", "own-terms"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: [en]\n---\n", None),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\n: [\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# No head\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_a_licence_is_what_the_models_card_says(tmp_path: Path, card: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == expected


def test_a_model_without_a_card_has_no_licence_that_we_know(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_licence(tmp_path) is None


def test_the_models_own_card_goes_before_the_presets_word(tmp_path: Path) -> None:
    def make_job(name: str, preset: str | None) -> Any:
        return SimpleNamespace(model=SimpleNamespace(path=tmp_path, name=name), preset=preset)

    synthia_7b = make_job("migtissera/Synthia-7B", "synthia-7b")
    known = find_licence(synthia_7b)
    assert known is not None
    assert known.name == "llama2"
    assert known.source.startswith("https://huggingface.co/migtissera/Synthia-7B")
    # A preset knows the licence of its own model, not of one that is asked in the same way.
    assert find_licence(make_job("somebody/else", "synthia-7b")) is None
    assert find_licence(make_job("somebody/else", "chat")) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find_licence(synthia_7b) == Licence(name="mit", source="the model's own card")
