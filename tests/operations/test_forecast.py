"""What `plan` foretells of the input, the disk and the settings."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import Command, write_jsonl

from synthia_batch.core.formatting import format_bytes
from synthia_batch.operations.disk_usage import RunSize, estimate_disk_usage

SCRIPTED = ("--engine", "scripted", "--pool", "local")


def write_rows(path: Path) -> Path:
    prompts = ["Why?", "x" * 9000, "Why?", "How?", "y" * 9000, "Why?"]
    return write_jsonl(path, [{"prompt": prompt} for prompt in prompts])


def forecast(synthia: Command, *arguments: str) -> dict[str, Any]:
    done = synthia("plan", *arguments, *SCRIPTED, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_rows_that_leave_no_room_and_rows_that_come_twice_are_named(synthia: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "q.jsonl")
    found = forecast(synthia, "q.jsonl", "-n", "3", "-s", "none", "-s", "synthia")
    assert found["rows_too_long"] == {"rows": 2, "first": ["q.jsonl:2", "q.jsonl:5"]}
    assert found["rows_repeated"] == {"rows": 2, "first": ["q.jsonl:3 (as 1)", "q.jsonl:6 (as 1)"]}
    assert found["prompt_tokens"]["too_long"] == 2 * 2 * 3
    told = synthia("plan", "q.jsonl", *SCRIPTED).stdout
    assert "rows too long: 2: q.jsonl:2, q.jsonl:5\n" in told
    assert "rows repeated: 2: q.jsonl:3 (as 1), q.jsonl:6 (as 1)\n" in told


def test_only_the_first_few_are_named_and_a_parquet_files_by_row(synthia: Command, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["Why?"] * 9}), tmp_path / "q.parquet")
    found = forecast(synthia, "q.parquet")["rows_repeated"]
    assert (found["rows"], len(found["first"]), found["first"][0]) == (8, 5, "q.parquet:2 (as 1)")
    assert "(as 1) ...\n" in synthia("plan", "q.parquet", *SCRIPTED).stdout
    write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Why?"}])
    assert "rows repeated: none\n" in synthia("plan", "one.jsonl", *SCRIPTED).stdout


def test_the_same_question_under_another_system_message_is_no_repetition(
    synthia: Command, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "s": text} for text in ("a", "b", "a")])
    found = forecast(synthia, "q.jsonl", "--system-column", "s")
    assert found["rows_repeated"] == {"rows": 1, "first": ["q.jsonl:3 (as 1)"]}


def test_a_run_takes_what_the_disk_was_foretold(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"What is {n} squared? " * 9} for n in range(300)])
    disk = forecast(synthia, "q.jsonl", "-o", "new/out", "--max-tokens", "100")["disk"]
    assert disk["place"] == str(tmp_path)
    assert synthia("run", "q.jsonl", *SCRIPTED, "-o", "new/out", "--max-tokens", "100").returncode == 0
    taken = sum(path.stat().st_size for path in (tmp_path / "new/out/data").iterdir())
    assert disk["least_bytes"] / 4 < taken < disk["most_bytes"] < disk["free_bytes"]


def test_a_disk_that_is_too_small_is_a_warning(tmp_path: Path) -> None:
    def estimate(prompt_bytes: int, tokens: int) -> str | None:
        size = RunSize(prompt_bytes=prompt_bytes, longest_output_tokens=tokens, samples=9, shards=1)
        return estimate_disk_usage(size, tmp_path / "out").warning

    advice = "free space, or use another directory with -o DIR"
    assert estimate(10, 10) is None
    assert estimate(10**18, 10) == f"not enough disk space at {tmp_path}; {advice}"
    free = estimate_disk_usage(
        RunSize(prompt_bytes=0, longest_output_tokens=0, samples=0, shards=1), tmp_path
    ).free_bytes
    assert estimate(free, 10) == f"not enough disk space at {tmp_path} if answers are long; {advice}"


def test_bytes_are_spelt_in_the_unit_that_suits_them() -> None:
    counts = (0, 999, 1000, 123_456, 3_400_000, 75_600_000_000, 1_500_000_000_000)
    assert [format_bytes(count) for count in counts] == [
        "0 bytes", "999 bytes", "1 kB", "123 kB", "3.4 MB", "75.6 GB", "1.5 TB",
    ]  # fmt: skip


def test_a_plan_shows_what_was_said_or_found_and_folds_the_rest(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    (tmp_path / "a.yaml").write_text("input:\n  path: q.jsonl\nseed: 3\ndeadline: 7h30m\n")
    told = synthia("plan", "a.yaml", *SCRIPTED, SYNTHIA_BATCH_SAMPLING__TOP_P="0.9").stdout
    settings = [" ".join(line.split()) for line in told.partition("\n\n")[0].splitlines()]
    for line in (
        "input.path q.jsonl (a.yaml:2)",
        "input.prompt_column prompt (the input)",
        "seed 3 (a.yaml:3)",
        "deadline 7h30m (a.yaml:4)",
        "sampling.top_p 0.9 (environment SYNTHIA_BATCH_SAMPLING__TOP_P)",
        "engine.kind scripted (flag)",
    ):
        assert line in settings, told
    assert "sampling.min_p" not in told
    assert settings[-1].endswith("more keys have default values; show them with --all")
    everything = synthia("plan", "a.yaml", *SCRIPTED, "--all").stdout
    assert "sampling.min_p" in everything
    assert "show them with --all" not in everything
