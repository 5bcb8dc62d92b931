"""`synthia-batch demo`: a first dataset in an empty directory."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from conftest import ROOT, Command

from synthia_batch.operations.demo import SAMPLE_NAME, make_demo_layer


def test_the_demo_makes_a_dataset_in_an_empty_directory(synthia: Command, tmp_path: Path) -> None:
    done = synthia("demo", "--engine", "scripted", "-q")
    assert done.returncode == 0, done.stderr
    (output,) = (tmp_path / "outputs").iterdir()
    assert done.stdout == f"outputs/{output.name}\n"
    assert output.name.startswith("demo-")
    table = pq.read_table(output / "data")
    assert (table.num_rows, "topic" in table.column_names) == (28, True)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", SAMPLE_NAME}
    assert "for your own file: synthia-batch init FILE" in done.stderr
    again = synthia("demo", "--engine", "scripted", "-q", "--json")
    assert json.loads(again.stdout)["made_now"] == 0


def test_the_demo_replaces_no_file(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / SAMPLE_NAME).write_text("mine\n")
    done = synthia("demo", "--engine", "scripted")
    assert (done.returncode, (tmp_path / SAMPLE_NAME).read_text()) == (2, "mine\n")
    assert "run `synthia-batch demo` in an empty directory" in done.stderr
    (tmp_path / SAMPLE_NAME).unlink()
    (tmp_path / SAMPLE_NAME).symlink_to(tmp_path / "nowhere")
    assert synthia("demo", "--engine", "scripted").returncode == 2
    assert not (tmp_path / "nowhere").exists()


def test_the_sample_is_the_input_of_the_shipped_jobs() -> None:
    sample = ROOT / "synthia_batch/operations/sample" / SAMPLE_NAME
    assert sample.read_bytes() == (ROOT / "inputs" / SAMPLE_NAME).read_bytes()
    values = make_demo_layer(sample).values
    quickstart = (ROOT / "jobs/quickstart.yaml").read_text()
    assert f"max_tokens: {values['sampling']['max_tokens']}\n" in quickstart
