"""`init`: the job file that it writes runs as it stands."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Command, write_jsonl

from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.merge import merge_layers
from synthia_batch.job.loading.yaml_positions import read_marked
from synthia_batch.operations.init import quote

SCRIPTED = ("--engine", "scripted", "--pool", "local")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "questions.parquet",
            {"prompt_column": "question", "id_column": "id", "keep_columns": ("topic",)},
        ),
        ("questions.jsonl", {"prompt_column": "question", "id_column": "id", "keep_columns": ("topic",)}),
        ("conversations.jsonl", {"turns_column": "turns", "id_column": "id", "keep_columns": ("card",)}),
        ("messages.jsonl", {"messages_column": "messages", "id_column": "id", "keep_columns": ()}),
    ],
)
def test_a_drafted_job_runs_as_it_stands(
    synthia: Command, tmp_path: Path, name: str, said: dict[str, Any]
) -> None:
    (tmp_path / "jobs").mkdir()
    source = ROOT / "inputs" / name
    made = synthia("init", source, "-o", "jobs/a.yaml")
    assert (made.returncode, made.stdout) == (0, "jobs/a.yaml\n"), made.stderr
    assert f"from the column {next(iter(said.values()))!r}" in made.stderr
    assert "check it with: synthia-batch plan jobs/a.yaml" in made.stderr
    job = merge_layers([read_job_file(tmp_path / "jobs/a.yaml")]).job
    assert Path(job.input.paths[0]).resolve() == source
    assert {key: getattr(job.input, key) for key in said} == said
    checked = synthia("validate", "jobs/a.yaml", *SCRIPTED)
    assert checked.returncode == 0, checked.stderr
    done = synthia("run", "jobs/a.yaml", *SCRIPTED)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / done.stdout.strip() / "data")
    assert f"{table.num_rows} rows of" in (tmp_path / "jobs/a.yaml").read_text()
    assert set(said["keep_columns"]) <= set(table.column_names)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"data": ["Hi", "Yes"]}, "format: ultrachat"),
        ({"turns": [{"role": "user", "content": "Hi"}]}, "turns_column: turns"),
    ],
)
def test_conversations_of_other_shapes_are_drafted(
    synthia: Command, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    write_jsonl(tmp_path / "t.jsonl", [row])
    made = synthia("init", "t.jsonl", "-o", "a.yaml")
    assert made.returncode == 0, made.stderr
    assert said in (tmp_path / "a.yaml").read_text()
    done = synthia("run", "a.yaml", *SCRIPTED)
    assert done.returncode == 0, done.stderr


def test_every_line_that_is_commented_out_may_be_let_in(synthia: Command, tmp_path: Path) -> None:
    text = synthia("init", ROOT / "inputs/questions.jsonl", "-o", "-").stdout
    lines = [line for line in text.splitlines() if not line.startswith("# ") or ": " in line[:40]]
    let_in = "\n".join(
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line for line in lines
    )
    (tmp_path / "a.yaml").write_text(let_in.split("\n", 1)[1])
    job = merge_layers([read_job_file(tmp_path / "a.yaml")]).job
    assert (job.input.limit, job.model.max_model_len, job.sampling.top_k) == (200, 8192, 50)
    assert (job.deadline, job.stop_at, str(job.max_failures)) == (27_000, "07:00", "1%")
    assert job.notify == ("${NOTIFY_URL}",)


def test_columns_of_unusual_names_are_found_by_what_they_hold(synthia: Command, tmp_path: Path) -> None:
    rows = [
        {
            "doc_id": n,
            "lang": "en",
            "frage: was?": f"Was ist {n} im Quadrat, und warum? " * 3,
            "persona": "You are terse.",
            "essay": "x" * 500,
            "no": n % 2,
            "seed": 3,
        }
        for n in range(20)
    ]
    # An essay is the longest; but it is not in every row.
    del rows[3]["essay"]
    write_jsonl(tmp_path / "odd.jsonl", rows)
    made = synthia("init", "odd.jsonl")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "odd.yaml").read_text()
    assert '  prompt_column: "frage: was?"\n' in text
    assert "  id_column: doc_id\n" in text
    assert "  # other columns: [essay, seed]\n" in text or "essay" in text
    assert "  # system_column: persona" in text
    assert synthia("run", "odd.yaml", *SCRIPTED, "-o", "out").returncode == 0


def test_an_id_that_comes_twice_far_down_is_no_id(synthia: Command, tmp_path: Path) -> None:
    rows = [{"id": min(n, 1500), "prompt": f"What is {n}?"} for n in range(1600)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    assert synthia("init", "q.jsonl").returncode == 0
    text = (tmp_path / "q.yaml").read_text()
    assert "# id_column: NAME" in text
    assert synthia("validate", "q.yaml", *SCRIPTED).returncode == 0


def test_nothing_is_written_over(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    (tmp_path / "q.yaml").write_text("mine")
    refused = synthia("init", "q.jsonl")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: q.yaml: already exists; name another with -o FILE, or overwrite it with --force\n",
    )
    assert (tmp_path / "q.yaml").read_text() == "mine"
    assert synthia("init", "q.jsonl", "--force").returncode == 0
    assert "prompt_column: prompt" in (tmp_path / "q.yaml").read_text()
    assert "cannot be written: No such file" in synthia("init", "q.jsonl", "-o", "no/q.yaml").stderr


def test_an_input_without_text_or_with_faults_is_refused(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "n.jsonl", [{"a": 1}, {"a": 2}])
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": 3}\n')
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    told = {name: synthia("init", name) for name in ("n.jsonl", "bad.jsonl", "none.parquet", "no.jsonl")}
    assert {done.returncode for done in told.values()} == {2}
    assert "name one with --prompt-column" in told["n.jsonl"].stderr
    assert "bad.jsonl:2: " in told["bad.jsonl"].stderr
    assert "there is no such file" in told["no.jsonl"].stderr
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".jsonl", ".parquet"]


@pytest.mark.parametrize(
    "name",
    [
        "question",
        "null",
        "No",
        "~",
        "1e5",
        "007",
        "a: b",
        "#a",
        "@a",
        "é",
        "a\u2028b",
        '"',
        "'",
        "*a",
        "- a",
        "",
    ],
)
def test_any_name_is_quoted_so_that_it_reads_as_itself(name: str) -> None:
    for text in (f"input: {{prompt_column: {quote(name)}}}", f"input:\n  prompt_column: {quote(name)}\n"):
        assert read_marked(text, "x.yaml").values == {"input": {"prompt_column": name}}
