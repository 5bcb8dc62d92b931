"""Answers that are not accepted are asked for again: the same bytes, each once, whatever happens."""

import json
import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import Killed, call, dying_at

FEW_WORDS = "response | words | length <= most"
ROWS = 12


@pytest.fixture(autouse=True)
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with a column `most`, of words in an answer: none is as short as the last row's."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Say {n}", "most": 9 if n < ROWS - 1 else 0} for n in range(ROWS)]
    write_jsonl(tmp_path / "q.jsonl", rows)


def run(capsys: Any, output: str, *flags: str, accept: str | None = FEW_WORDS) -> Any:
    common = ("--engine", "scripted", "--pool", "local", "--keep-columns", "most", "-n", "2", "-o", output)
    wanted = () if accept is None else ("--accept", accept, "--max-candidates", "4")
    return call(capsys, "run", "q.jsonl", "-q", *common, *wanted, *flags)


def read(output: str, part: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(output, part)).to_pylist()
    return rows


def content(root: str) -> dict[str, bytes]:
    found = [path for pattern in ("*/*.parquet", "*.json", "*.md") for path in Path(root).glob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_a_sample_is_the_first_answer_that_is_accepted(capsys: Any) -> None:
    done = run(capsys, "out", "--set", "engine.call_log=calls")
    assert done.code == 0, done.err
    plain = run(capsys, "plain", accept=None)
    assert plain.code == 0
    made, failed = read("out"), read("out", "failed")
    assert all(len(row["response"].split()) <= row["most"] for row in made)
    assert {row["row_index"] for row in failed} == {*(row["row_index"] for row in failed), ROWS - 1}
    assert {row["code"] for row in failed} == {"not_accepted"}
    assert f"none of 4 answers was accepted ({FEW_WORDS}); the last: " in failed[0]["message"]
    candidates = Counter(row["candidates"] for row in made)
    assert 1 in candidates, "some are accepted at once"
    assert 1 < max(candidates) <= 4, "some later"
    first = {(row["row_index"], row["sample_index"]): row["response"] for row in read("plain")}
    for row in made:
        is_first = first[row["row_index"], row["sample_index"]] == row["response"]
        assert is_first == (row["candidates"] == 1), "the first is the sample of a job without accept"
    calls = Path("calls").read_text().split()
    assert len(calls) == len(set(calls)) == sum(row["candidates"] for row in made) + 4 * len(failed)


def test_answers_do_not_depend_on_workers_or_kills_and_no_candidate_is_made_twice(capsys: Any) -> None:
    assert run(capsys, "whole").code == 0
    whole = content("whole")
    assert run(capsys, "wide", "--workers", "3", "--set", "engine.max_num_seqs=2").code == 0
    assert content("wide")["data/train-00000-of-00001.parquet"] == whole["data/train-00000-of-00001.parquet"]
    flags = ("--set", "engine.call_log=calls", "--set", "engine.max_num_seqs=1")
    for number in count(1, 4):
        shutil.rmtree("killed", ignore_errors=True)
        Path("calls").unlink(missing_ok=True)
        try:
            with dying_at(number):
                done = run(capsys, "killed", *flags)
            if done.code == 0:
                break
        except Killed:
            pass
        before = Counter(Path("calls").read_text().split() if Path("calls").exists() else ())
        done = run(capsys, "killed", *flags)
        assert (done.code, content("killed") == whole) == (0, True), (number, done.err)
        again = Counter(Path("calls").read_text().split()) - before
        # The answers that were on their way when it was killed, two requests an engine.
        assert len(before & again) <= 2, number
    assert number > 10


def test_accepted_samples_are_verified_made_again_and_read_from_python(capsys: Any) -> None:
    from synthia_batch import open_run

    assert run(capsys, "out").code == 0
    assert call(capsys, "verify", "out", "--rows").code == 0
    rerun = call(capsys, "verify", "out", "--rerun", "6", "-q")
    assert rerun.code == 0, rerun.out
    counts = [row["candidates"] for row in read("out")]
    assert [sample.candidates for sample in open_run("out").samples()] == counts
    retried = call(capsys, "retry", "out", "-q")
    assert retried.code == 0, "they fail again, and the others keep their candidates"
    assert call(capsys, "verify", "out", "--rows").code == 0
    told = call(capsys, "failed", "out").err
    assert (
        "what was not accepted comes out the same again: run the job with another --accept or --seed" in told
    )


def test_drawn_columns_and_greedy_rows_are_accepted_or_not(capsys: Any) -> None:
    Path("tone.yaml").write_text(
        "input: {rows: 8, prompt_template: ask.j2, columns: {most: {choice: [9]}}}\n"
        "accept: response | words | length < most\nengine: {kind: scripted}\npool: {kind: local}\n"
    )
    Path("ask.j2").write_text("{{ number }}")
    assert call(capsys, "run", "tone.yaml", "-o", "drawn", "-q").code == 0
    assert max(row["candidates"] for row in read("drawn")) > 1
    rows = [{"question": f"Say {n}", "own": {"temperature": 0}} for n in range(8)]
    write_jsonl(Path("greedy.jsonl"), rows)
    flags = ("--sampling-column", "own", "--accept", "response == ''", "--engine", "scripted")
    done = call(capsys, "run", "greedy.jsonl", *flags, "--pool", "local", "-o", "greedy", "-q")
    assert "Traceback" not in done.err
    failed = call(capsys, "failed", "greedy").out
    assert failed.count("its only answer was") == len(rows), failed


def test_what_accepts_is_part_of_the_identity(capsys: Any) -> None:
    assert run(capsys, "out").code == 0
    other = run(capsys, "out", accept="response | words | length < most")
    assert (other.code, "accept.expression" in other.err) == (4, True)
    more = run(capsys, "out", "--max-candidates", "5")
    assert (more.code, "accept.max_candidates: 4 before, 5 now" in more.err) == (4, True)


def test_an_answer_without_its_structure_is_not_accepted(capsys: Any) -> None:
    """The scripted engine does not follow regular expressions, as a server may not."""
    done = run(capsys, "out", "--set", "structured.regex='[0-9]+'", accept="response != ''")
    assert done.code == 3, "there is no dataset"
    failed = read("out", "failed")
    assert {row["code"] for row in failed} == {"not_accepted"}
    assert all("none of 4 answers was accepted" in row["message"] for row in failed)


def test_an_expression_that_fails_on_an_answer_fails_that_sample(capsys: Any) -> None:
    assert run(capsys, "out", accept="10 / most > 0").code == 0
    failed = read("out", "failed")
    assert {(row["row_index"], row["code"]) for row in failed} == {(ROWS - 1, "accept_failed")}
    assert "division by zero" in failed[0]["message"]


@pytest.mark.parametrize(
    ("accept", "told"),
    [
        ("mots > 3", "accept: mots > 3: there is no mots; did you mean most?"),
        ("question == response", "there is no question"),
        ("response ==", "write an expression of Jinja"),
        ("1 < 2", "it reads no column"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_starts(capsys: Any, accept: str, told: str) -> None:
    refused = run(capsys, "out", accept=accept)
    assert (refused.code, Path("out").exists()) == (2, False)
    assert told in refused.err


def test_conversations_of_several_turns_have_no_acceptance(capsys: Any) -> None:
    Path("q.jsonl").write_text(json.dumps({"turns": ["a", "b"], "most": 1}) + "\n")
    refused = run(capsys, "out", "--turns-column", "turns")
    assert (refused.code, "is for single answers" in refused.err) == (2, True)


def test_what_has_no_effect_is_refused(capsys: Any) -> None:
    greedy = run(capsys, "out", "--temperature", "0")
    assert (greedy.code, "accept: at temperature 0 every answer is the same" in greedy.err) == (2, True)
    assert run(capsys, "one", "--temperature", "0", "--max-candidates", "1").code in (0, 3)
    alone = run(capsys, "out", "--max-candidates", "3", accept=None)
    assert (alone.code, "has no effect without accept" in alone.err) == (2, True)


def has_few_words(answer: Any) -> bool:
    return len(answer["response"].split()) <= answer["most"]


def has_few_words_exactly(answer: Any) -> bool:
    return len(answer["response"].split()) < answer["most"] + 1


def divides(answer: Any) -> float:
    return 1 / (answer["most"] - 9)


def declare(output: str, accept: Any) -> dict[str, Any]:
    return {
        "input": {"path": "q.jsonl", "keep_columns": ["most"]},
        "engine": {"kind": "scripted"},
        "pool": {"kind": "local"},
        "num_samples": 2,
        "max_candidates": 4,
        "accept": accept,
        "output": output,
    }


def test_a_function_accepts_what_the_same_expression_does(capsys: Any) -> None:
    from synthia_batch import Job, open_run, run_job
    from synthia_batch.errors import IdentityMismatch, UsageError

    assert run(capsys, "by-expression").code == 0
    made = run_job(Job(**declare("by-function", has_few_words)))
    assert made.is_complete
    assert made.failed
    assert read("by-function") == read("by-expression")
    assert [row["message"].split(")")[0] for row in read("by-function", "failed")] == [
        "none of 4 answers was accepted (has_few_words"
    ] * made.failed
    assert run_job(Job(**declare("by-function", has_few_words))).made == 0, "the same function resumes"
    with pytest.raises(IdentityMismatch, match="accept"):
        run_job(Job(**declare("by-function", has_few_words_exactly)))
    saved = json.loads(Path("by-function/.synthia/job.json").read_text())
    assert saved["job"]["accept"].startswith("def has_few_words(answer")
    for command in (["retry", "by-function"], ["verify", "by-function", "--rerun", "1"]):
        done = call(capsys, *command)
        assert (done.code, "run from Python" in done.err) == (2, True), done.err
    with pytest.raises(UsageError, match="run from Python"):
        run_job(open_run("by-function").job)
    assert call(capsys, "verify", "by-function").code == 0
    assert call(capsys, "report", "by-function").code == 0


def test_an_error_of_a_function_fails_the_sample_and_names_it() -> None:
    from synthia_batch import Job, run_job

    made = run_job(Job(**declare("out", divides)))
    assert (made.finished, made.failed) == (2, 2 * ROWS - 2)
    assert {row["code"] for row in read("out", "failed")} == {"accept_failed"}
    assert read("out", "failed")[0]["message"] == "accept: divides: ZeroDivisionError: division by zero"


def test_a_function_whose_source_does_not_show_what_it_does_is_refused() -> None:
    from synthia_batch import Job
    from synthia_batch.errors import UsageError

    limit = 3

    def has_limit(answer: Any) -> bool:
        return len(answer["response"]) < limit

    space: dict[str, Any] = {}
    exec("def made(answer): return True", space)
    for accept, what in (
        (lambda answer: True, "no source of its own"),
        (len, "no source of its own"),
        (has_limit, "has_limit depends on limit"),
        (space["made"], "the source of made cannot be read"),
    ):
        with pytest.raises(UsageError, match=what):
            Job(**declare("out", accept))


def test_a_stage_of_a_pipeline_takes_a_function() -> None:
    from synthia_batch import run_stages

    first = declare("", has_few_words)
    first.pop("output")
    stages = [{"name": "few", **first}, {"name": "kept", "select": {"limit": 3}}]
    declared = {"name": "judged", "stages": stages, "output": "judged"}
    assert run_stages(declared).is_complete
    again = run_stages(declared)
    assert [stage.kept for stage in again.stages] == [again.stages[0].kept, 3]
    assert all(len(row["response"].split()) <= 9 for row in read(str(again.stages[0].result.directory)))
