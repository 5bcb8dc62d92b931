"""What a run and an export suggest and write works as it stands."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import Command, write_jsonl

from synthia_batch.cli.commands import run as run_command
from synthia_batch.results.export.writer import write_records
from synthia_batch.runner.monitoring.result import RunResult


def test_the_cards_command_makes_the_same_job(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"q": "Why?", "topic": "sky"}])
    flags = ("--engine", "scripted", "--prompt-column", "q", "--keep-columns", "topic", "-s", "synthia")
    more = ("--set", "model.max_model_len=700", "--set", "sampling.min_p=0.1", "--pool", "local", "-o", "out")
    assert synthia("run", "q.jsonl", *flags, *more).returncode == 0
    card = (tmp_path / "out/README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("synthia-batch run"))
    planned = synthia("plan", *shlex.split(command)[2:], "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads((tmp_path / "out/.synthia/plan.json").read_text())
    assert json.loads(planned.stdout)["fingerprint"] in json.dumps(plan)


def test_the_cards_command_draws_the_same_columns(synthia: Command, tmp_path: Path) -> None:
    columns = {"tone": {"choice": ["dry", "it's \u00fc"]}, "level": {"weights": {"1": 3, "hard": 1}}}
    given = ("--set", f"input.columns={json.dumps(columns)}", "--set", "input.generate_role=user")
    flags = ("--engine", "scripted", "--pool", "local", "-s", "synthia", "--limit", "4")
    done = synthia("run", "rows://9", *given, *flags, "-o", "out")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out/README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("synthia-batch run"))
    assert "--keep-columns" not in command
    planned = synthia("plan", *shlex.split(command)[2:], "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads((tmp_path / "out/.synthia/plan.json").read_text())
    assert json.loads(planned.stdout)["fingerprint"] in json.dumps(plan)


@pytest.mark.parametrize(
    ("installed", "suggested"),
    [
        ({"datasets", "pandas"}, "datasets.load_dataset('out')"),
        ({"pandas"}, "pandas.read_parquet('out/data')"),
        (set(), "pyarrow.parquet.read_table('out/data')"),
    ],
)
def test_the_end_of_a_run_suggests_what_is_installed(
    installed: set[str], suggested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_command, "find_spec", lambda name: name if name in installed else None)
    result = RunResult(
        directory=Path("out"),
        samples=1,
        finished=1,
        failed=0,
        made=1,
        seconds=1,
        max_failures=None,
        drained=None,
    )
    assert run_command._format_loading(result) == suggested


def test_an_endpoint_is_fast_by_nature_and_the_plan_says_so(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    job = ("q.jsonl", "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    planned = synthia("plan", *job)
    assert planned.returncode == 0, planned.stderr
    assert "determinism" in planned.stdout
    assert "fast  (the endpoint engine)" in planned.stdout
    strict = synthia("plan", *job, "--determinism", "strict")
    assert strict.returncode == 2
    assert "strict determinism cannot be guaranteed" in strict.stderr


def test_csv_for_a_spreadsheet_has_a_mark_and_no_formulas(tmp_path: Path) -> None:
    records = [{"text": start + "1", "number": -1} for start in ("=", "+", "-", "@", "\t", "a")]
    path = tmp_path / "new" / "folder" / "table.csv"
    write_records(records, ("text", "number"), path, as_csv=True, replaces=False, for_spreadsheet=True)
    content = path.read_bytes().decode()
    assert content.startswith("\ufefftext,number\n")
    assert content.splitlines()[1:] == ["'=1,-1", "'+1,-1", "'-1,-1", "'@1,-1", "'\t1,-1", "a1,-1"]
    plain = tmp_path / "plain.csv"
    write_records(records[:1], ("text", "number"), plain, as_csv=True, replaces=False)
    assert plain.read_text() == "text,number\n=1,-1\n"


def test_a_spreadsheet_reads_csv_alone(synthia: Command) -> None:
    refused = synthia("export", "out", "--to", "messages", "--for", "spreadsheet")
    assert refused.returncode == 2
    assert "expected --to csv --for spreadsheet" in refused.stderr
