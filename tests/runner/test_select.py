"""Selections of a complete run: what is kept, why the rest is not, and a run directory like any other."""

import json
import math
import random
import re
import shutil
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import Killed, call, dying_at

from synthia_batch import open_run
from synthia_batch.core.digest import digest_json
from synthia_batch.errors import IdentityMismatch, NothingSelected, UsageError
from synthia_batch.inputs.records.expressions import (
    Expression,
    ExpressionFailed,
    SampleNames,
    read_number,
)
from synthia_batch.job.select import Select
from synthia_batch.results.select.decide import Selector
from synthia_batch.results.select.near import find_near, sign
from synthia_batch.results.select.verdicts import Verdict
from synthia_batch.runner.selection import select_samples
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.plan_file import require_plan

ENGINE = ("--engine", "scripted", "--pool", "local", "-q")
ROWS = 6
NAMES = SampleNames(
    job="judged",
    runs={"answers": ("response", "row_index"), "judged": ("response", "system", "completion_tokens")},
    plain=("topic", "score", "row", "my col"),
)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """A complete run named `q`: six rows, two samples each, three of which failed, in three files."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "xy"[n % 2]} for n in range(ROWS)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    write_jsonl(tmp_path / "benchmark.jsonl", [{"topic": "x"}])
    options = ("--id-column", "id", "--keep-columns", "topic", "-n", "2", "--samples-per-file", "4")
    failing = ("--set", "engine.fail_every=5")
    assert call(capsys, "run", "q.jsonl", *ENGINE, *options, *failing, "-o", "answers").code == 0
    return tmp_path / "answers"


def read(directory: Path, folder: str = "data") -> list[dict[str, Any]]:
    rows = [pq.read_table(path).to_pylist() for path in sorted((directory / folder).glob("*.parquet"))]
    return [row for part in rows for row in part]


def name(row: dict[str, Any]) -> tuple[str, int]:
    return row["id"], row["sample_index"]


def select(answers: Path, output: str = "kept", **steps: Any) -> list[dict[str, Any]]:
    select_samples(answers, Select(**steps), Path(output))
    return read(Path(output))


def test_what_is_kept_is_as_it_was_and_the_rest_is_in_failed_with_its_reason(answers: Path) -> None:
    before = read(answers)
    kept = select(answers, where="topic == 'x' and q.completion_tokens > 5")
    assert kept == [row for row in before if row["topic"] == "x" and row["completion_tokens"] > 5]
    others = read(Path("kept"), "failed")
    assert len(kept) + len(others) == 2 * ROWS
    assert [(row["row_index"], row["sample_index"]) for row in others] == sorted(
        (row["row_index"], row["sample_index"]) for row in others
    )
    old = {name(row): row for row in read(answers, "failed")}
    for row in others:
        if name(row) in old:
            assert row == old[name(row)]
        else:
            assert (row["code"], row["message"]) == (
                "not_selected",
                "where: topic == 'x' and q.completion_tokens > 5",
            )
            (made,) = (one for one in before if name(one) == name(row))
            assert (row["messages"], row["source_file"], row["source_line"]) == (
                made["messages"],
                "q.jsonl",
                None,
            )


def test_the_best_of_each_row_stay_and_of_equal_ones_the_earlier(answers: Path) -> None:
    before = read(answers)
    best: dict[str, dict[str, Any]] = {}
    for row in before:
        if row["id"] not in best or row["completion_tokens"] > best[row["id"]]["completion_tokens"]:
            best[row["id"]] = row
    assert select(answers, best="q.completion_tokens") == list(best.values())
    assert select(answers, "first", best="1 if q.response else 0") == [
        next(row for row in before if row["id"] == one) for one in dict.fromkeys(row["id"] for row in before)
    ]
    assert select(answers, "both", best="q.completion_tokens", top=2) == before
    with pytest.raises(
        NothingSelected, match=r"none of its 9 samples is kept: no score 9\n.*again: runs that are"
    ):
        select(answers, "none", best="q.json.score")
    assert not Path("none").exists()


def test_what_keeps_nothing_says_which_values_there_are(answers: Path) -> None:
    tokens = [row["completion_tokens"] for row in read(answers)]
    with pytest.raises(NothingSelected) as found:
        select(answers, "none", where="(q.completion_tokens >= 1e3) and q.json.score > 7 and topic == 'x'")
    said = f"where 9; q.completion_tokens is {min(tokens)} to {max(tokens)}; q.json.score is no number\n"
    assert said in str(found.value)


def test_of_equal_values_the_first_of_the_whole_run_stays(answers: Path) -> None:
    before = read(answers)
    kept = select(answers, dedup="topic")
    assert kept == [next(row for row in before if row["topic"] == topic) for topic in ("x", "y")]
    messages = {row["message"] for row in read(Path("kept"), "failed") if row["code"] == "not_selected"}
    assert messages == {
        f"duplicate of {row['id']}/{row['system']}/{row['sample_index']}: topic" for row in kept
    }
    assert select(answers, "all", dedup="q.json.nothing") == before


def write_run(capsys: Any, texts: list[str]) -> None:
    """A complete run named `t` in `texts`, a sample for each text in its column `said`, in several files."""
    write_jsonl(
        Path("t.jsonl"), [{"id": f"r{n}", "prompt": "Say", "said": one} for n, one in enumerate(texts)]
    )
    options = ("--id-column", "id", "--keep-columns", "said", "--samples-per-file", "2", "-o", "texts")
    assert call(capsys, "run", "t.jsonl", *ENGINE, *options).code == 0


def test_of_similar_texts_the_first_of_the_whole_run_stays(answers: Path, capsys: Any) -> None:
    long = "The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree all day."
    other = "Rivers carry sand from the mountains to the sea, where it settles in thin layers year by year."
    write_run(capsys, [long, other, long.replace("all day", "all night"), other, f" {long}\n", "", "", "ab"])
    kept = select(Path("texts"), "near", dedup={"on": "said", "near": 0.7})
    assert [row["id"] for row in kept] == ["r0", "r1", "r5", "r7"]
    said = {row["id"]: (row["code"], row["message"]) for row in read(Path("near"), "failed")}
    assert {code for code, _ in said.values()} == {"not_selected"}
    assert re.fullmatch(r"duplicate of r0/\w+/0, similarity 0\.[789]\d: said", said["r2"][1])
    assert [said[name][1].partition(":")[0] for name in ("r3", "r4", "r6")] == [
        f"duplicate of {name}/none/0, similarity 1.00" for name in ("r1", "r0", "r5")
    ]
    assert [row["id"] for row in select(Path("texts"), "most", dedup={"on": "said", "near": 1})] == [
        *("r0", "r1", "r2", "r5", "r7")
    ]
    plan = json.loads(Path("near/.synthia/plan.json").read_text())
    assert plan["identity"]["select"]["minhash"].startswith("rensa ")
    made = call(capsys, "select", "texts", "--dedup", "said", "--near", "0.7", "-o", "flags")
    assert made.code == 0, made.err
    assert [row["id"] for row in read(Path("flags"))] == [row["id"] for row in kept]
    refused = call(capsys, "select", "texts", "--near", "0.7", "--limit", "3", "-o", "x")
    assert (refused.code, "--near belongs to dedup, which is not set" in refused.err) == (2, True)
    refused = call(capsys, "select", "texts", "--dedup", "said", "--near", "7", "-o", "x")
    assert (refused.code, "--near: Input should be less than or equal to 1" in refused.err) == (2, True)
    assert "--dedup=said --near=0.7" in Path("flags/README.md").read_text()


def test_near_duplicates_are_those_that_comparing_each_with_each_finds() -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(400)]
    texts: list[list[str]] = []
    for _ in range(300):
        if texts and rng.random() < 0.5:
            copy = list(rng.choice(texts))
            copy[rng.randrange(len(copy))] = rng.choice(words)
            texts.append(copy)
        else:
            texts.append(rng.choices(words, k=40))
    signed = [np.frombuffer(sign(" ".join(text)), np.uint32) for text in texts]
    expected: dict[int, int] = {}
    for later, mine in enumerate(signed):
        before = [n for n in range(later) if n not in expected and (signed[n] == mine).mean() >= 0.85]
        expected |= {later: before[0]} if before else {}
    found = {one.number: one.original for one in find_near(np.array(signed), np.arange(len(texts)), 0.85)}
    assert len(found) > 50
    assert found == expected


def test_near_duplicates_without_their_library_are_refused_with_the_line_that_installs_it(
    answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthia_batch.results.select.near.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"near needs rensa; run: pip install 'synthia-batch\[dedup\]'"):
        select(answers, dedup={"on": "topic", "near": 0.9})


def test_a_limit_takes_the_first_and_a_sample_is_drawn_by_its_seed(answers: Path) -> None:
    before = read(answers)
    assert select(answers, limit=3) == before[:3]
    drawn = [select(answers, f"drawn {seed}", sample=4, seed=seed) for seed in range(5)]
    assert all(len(rows) == 4 and [row for row in before if row in rows] == rows for rows in drawn)
    assert len({digest_json([name(row) for row in rows]) for rows in drawn}) > 1
    assert select(answers, "again", sample=4, seed=1) == drawn[1]
    assert (
        select(answers, "steps", where="topic == 'x'", limit=3, sample=2)
        in (
            [row for row in before if row["topic"] == "x"][:3][first:last] for first, last in ((0, 2), (1, 3))
        )
        or len(read(Path("steps"))) == 2
    )


def test_a_sample_on_which_an_expression_fails_is_named_with_the_fault(answers: Path, capsys: Any) -> None:
    kept = select(answers, where="1 / (q.sample_index) > 0")
    assert {row["sample_index"] for row in kept} == {1}
    failed = [row for row in read(Path("kept"), "failed") if row["code"] == "expression_failed"]
    assert {row["sample_index"] for row in failed} == {0}
    assert {row["message"] for row in failed} == {"1 / (q.sample_index) > 0: division by zero"}
    with pytest.raises(NothingSelected) as found:
        select(answers, "none", where="q.response.foo() > 1")
    assert "kept: failed 9; first: q.response.foo() > 1: " in str(found.value)


def test_the_directory_is_a_run_that_the_other_commands_take(answers: Path, capsys: Any) -> None:
    made = call(capsys, "select", "answers", "--best", "q.completion_tokens", "-o", "kept")
    assert made.code == 0
    assert made.out == "kept\n"
    assert "kept 6 of 12 samples (not best 3)" in made.err
    told = json.loads(call(capsys, "select", "answers", "--best", "q.completion_tokens", "--json").out)
    assert (told["samples"], told["kept"], told["dropped"]) == (12, 6, {"not_best": 3})
    assert Path(told["directory"]).parent == Path("outputs")
    verified = call(capsys, "verify", "kept", "--rows")
    assert (verified.code, "no findings: complete" in verified.out) == (0, True), verified
    assert "6 finished, 3 not selected, 3 failed" in call(capsys, "status", "kept").out
    listed = call(capsys, "failed", "kept", "--code", "not_selected")
    why = "not_selected: not the best of its row: q.completion_tokens (id r1"
    assert f"q.jsonl: row_index 1: {why}" in listed.out
    assert "select from that again" in listed.err
    assert "failed: 3, not selected: 3, by code:" in listed.err
    assert len(call(capsys, "export", "kept", "--to", "messages").out.splitlines()) == 6
    refused = call(capsys, "retry", "kept")
    assert refused.code == 2
    assert "kept is a selection, which generates nothing; retry the run that it is of" in refused.err
    card = Path("kept/README.md").read_text()
    assert re.search(r"synthia-batch select outputs/q-[0-9a-f]{8} --best=q.completion_tokens", card)
    assert "6 were not kept" in card
    Path("ask.j2").write_text("{{ q.response }}")
    asked = call(capsys, "run", "kept", *ENGINE, "--prompt-template", "ask.j2", "-o", "judged")
    assert asked.code == 0, asked.err
    assert len(read(Path("judged"))) == 6


def test_what_is_not_selected_counts_nowhere_as_failed(answers: Path, capsys: Any) -> None:
    select(answers, best="q.completion_tokens")
    expected = {"failed": 3, "not_selected": 3, "failures": {"scripted_failure": 3}}
    told = json.loads(call(capsys, "report", "kept", "--json").out)
    assert {key: told[key] for key in expected} == expected
    numbers = open_run("kept").statistics().to_dict()
    assert {key: numbers[key] for key in expected} == expected
    assert numbers["missing"] == 0
    assert call(capsys, "report", "kept").code == 0
    page = Path("kept/report.html").read_text()
    assert "<b>3</b><span>failed</span>" in page
    assert "<b>3</b><span>not selected</span>" in page
    assert ">Failed 3</a>" in page
    assert ">Not selected 3</a>" in page
    assert page.count(">not_selected<") == 3, "in the tab alone, not in the table of failures"
    assert "retry" not in page


def test_the_best_answers_of_a_row_are_found_by_what_a_later_run_says_of_them(
    answers: Path, capsys: Any
) -> None:
    Path("judge.j2").write_text("{{ topic }}: {{ q.response }}")
    Path("again.j2").write_text("{{ judge.response }}")
    kept = ("--keep-columns", "topic,q")
    judge = ("--prompt-template", "judge.j2", "--set", "name=judge", "-o", "judged")
    assert call(capsys, "run", "answers", *ENGINE, *kept, *judge).code == 0
    best: dict[int, dict[str, Any]] = {}
    for row in read(Path("judged")):
        at = row["q"]["row_index"]
        if at not in best or row["completion_tokens"] > best[at]["completion_tokens"]:
            best[at] = row
    options = {"best": "judge.completion_tokens", "where": "q.finish_reason == 'stop'"}
    assert select(Path("judged"), **options) == list(best.values())
    assert select(Path("judged"), "alone", per="judge", **options) == read(Path("judged"))
    with pytest.raises(UsageError, match="per: there is no run x; there are q, judge"):
        select(Path("judged"), "x", per="x", **options)
    more = (
        "--keep-columns",
        "q,judge",
        "--prompt-template",
        "again.j2",
        "--set",
        "name=again",
        "-o",
        "third",
    )
    assert call(capsys, "run", "kept", *ENGINE, *more).code == 0
    with pytest.raises(UsageError, match="Name one of q, judge, again"):
        select(Path("third"), "x", best="again.completion_tokens")
    assert len(select(Path("third"), "fourth", best="again.completion_tokens", per="q")) == 6


def test_rows_of_runs_that_were_read_together_are_told_apart(answers: Path, capsys: Any) -> None:
    Path("judge.j2").write_text("{{ ans.response }}")
    for name in ("a", "b"):
        rows = [{"id": f"{name}{n}", "prompt": f"Say {name}{n}"} for n in range(2)]
        write_jsonl(Path(f"{name}.jsonl"), rows)
        options = ("--id-column", "id", "-n", "2", "--set", "name=ans", "-o", f"run {name}")
        assert call(capsys, "run", f"{name}.jsonl", *ENGINE, *options).code == 0
    judge = ("--prompt-template", "judge.j2", "--keep-columns", "ans", "--set", "name=judge", "-o", "both")
    assert call(capsys, "run", "run a", "run b", *ENGINE, *judge).code == 0
    kept = select(Path("both"), best="judge.completion_tokens")
    assert [row["ans"]["id"] for row in kept] == ["a0", "a1", "b0", "b1"]


def test_a_job_with_the_name_of_the_run_that_it_keeps_is_refused(answers: Path, capsys: Any) -> None:
    Path("judge.j2").write_text("{{ q.response }}")
    options = ("--prompt-template", "judge.j2", "--keep-columns", "q", "--set", "name=q", "-o", "judged")
    refused = call(capsys, "run", "answers", *ENGINE, *options)
    assert refused.code == 2
    assert "the kept column 'q' has the name of the job" in refused.err
    assert not Path("judged").exists()
    write_jsonl(Path("topic.jsonl"), [{"prompt": "Hi", "topic": "x"}])
    call(capsys, "run", "topic.jsonl", *ENGINE, "--keep-columns", "topic", "-o", "twice")
    with pytest.raises(UsageError, match="the run kept a column 'topic', which is also its job's name"):
        select(Path("twice"), limit=1)


def test_a_fault_of_dedup_counts_only_where_the_sample_is_still_there(answers: Path) -> None:
    # Without a value for the best sample of a row, no worse one takes its place.
    fails = "1 // 0 if q.sample_index == {} else q.id"
    before = read(answers)
    best = select(answers, best="0 - q.sample_index")
    for index in (0, 1):
        kept = select(answers, f"dedup {index}", best="0 - q.sample_index", dedup=fails.format(index))
        assert kept == [row for row in best if row["sample_index"] != index]
    assert select(answers, "lists", dedup="[q.json.nothing, q.id, q.sample_index]") == before


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"top": 2}, "top belongs to best, which is not set"),
        ({"per": "q", "limit": 3}, "per belongs to best"),
        ({"seed": 3, "where": "topic"}, "seed belongs to sample"),
        ({"limit": 0}, "greater than or equal to 1"),
    ],
)
def test_a_step_without_effect_is_refused(
    answers: Path, capsys: Any, steps: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Select(**steps)
    flags = [text for name, value in steps.items() for text in (f"--{name}", str(value))]
    refused = call(capsys, "select", "answers", *flags, "-o", "x")
    assert refused.code == 2
    assert said in refused.err


def test_the_selection_is_the_same_wherever_the_run_is(answers: Path) -> None:
    select(answers, limit=3)
    shutil.move("answers", "elsewhere")
    select(Path("elsewhere"), "again", limit=3)
    for name in ("README.md", "manifest.json"):
        assert Path("kept", name).read_bytes() == Path("again", name).read_bytes()
    with pytest.raises(UsageError, match="it would be in the run that is selected from"):
        select(Path("elsewhere"), "elsewhere/kept", limit=3)
    for arguments in ((Path("s3://b/x"), "y"), (Path("again"), "s3://b/x")):
        with pytest.raises(UsageError, match="select reads and writes directories"):
            select(*arguments, limit=3)


def test_what_a_kill_leaves_of_a_selection_is_no_damage(answers: Path, capsys: Any) -> None:
    for number in count(1):
        shutil.rmtree("kept", ignore_errors=True)
        try:
            with dying_at(number):
                select(answers, limit=3)
            break
        except Killed:
            if Path("kept/.synthia/plan.json").exists():
                verified = call(capsys, "verify", "kept")
                assert verified.code == 0, (number, verified)
                assert call(capsys, "status", "kept").code == 0
    (part,) = Path("kept/data").glob("*-00000-*")
    part.unlink()
    assert call(capsys, "verify", "kept").code == 4
    assert call(capsys, "verify", "kept", "--repair").code == 0
    assert len(select(answers, limit=3)) == 3
    assert call(capsys, "verify", "kept").code == 0


def test_the_same_selection_again_changes_nothing_and_another_is_refused(answers: Path) -> None:
    select(answers, limit=3)
    stamps = {path: path.stat().st_mtime_ns for path in Path("kept").glob("*/*.parquet")}
    assert len(select(answers, limit=3)) == 3
    assert {path: path.stat().st_mtime_ns for path in Path("kept").glob("*/*.parquet")} == stamps
    with pytest.raises(IdentityMismatch, match=r"select\.limit: 3 before, 4 now"):
        select(answers, limit=4)
    with pytest.raises(UsageError, match="nothing is selected: set combine, where, best, dedup, decont"):
        select(answers)
    (answers / "manifest.json").unlink()
    with pytest.raises(UsageError, match="is not complete"):
        select(answers, "other", limit=4)


@pytest.mark.parametrize(
    "steps",
    [
        {"where": "topic == 'x'", "best": "q.completion_tokens"},
        {"dedup": {"on": "q.response", "near": 0.5}},
        {
            "combine": {"tokens": {"mean": "q.completion_tokens"}, "ended": {"majority": "q.finish_reason"}},
            "where": "tokens > 1 and ended == 'stop'",
            "decontaminate": {"against": "benchmark.jsonl", "column": "topic", "on": "topic"},
        },
    ],
)
def test_a_selection_that_is_killed_anywhere_ends_in_the_same_bytes(answers: Path, steps: Any) -> None:
    steps = Select.model_validate(steps)

    def run() -> None:
        select_samples(answers, steps, Path("kept"))

    def content(root: Path) -> dict[str, bytes]:
        files = [*root.glob("*/*.parquet"), root / "manifest.json", root / "README.md"]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    select_samples(answers, steps, Path("whole"))
    whole = content(Path("whole"))
    for number in count(1):
        shutil.rmtree("kept", ignore_errors=True)
        try:
            with dying_at(number):
                run()
            break
        except Killed:
            run()
        assert content(Path("kept")) == whole, number
    assert number > 30
    assert read_manifest(RunDir(Path("kept")).manifest) is not None


def test_lazy_values_are_compared_by_what_they_hold(answers: Path) -> None:
    texts = ["a b", "c", "d", "b a a", "c c"]
    samples = [
        {"id": str(n), "system": "", "sample_index": 0, "row_index": n, "response": text}
        for n, text in enumerate(texts)
    ]
    names = SampleNames(job="q", runs={"q": ["response", "id", "row_index"]}, plain=[])
    for expression in (
        "q.response | words | unique | sort",
        "q.response | words | unique | map('lower') | sort",
    ):
        found = Selector(Select(dedup=expression), names).decide(lambda columns: samples)
        assert found.original.tolist() == [-1, -1, -1, 0, 1], expression
    found = Selector(Select(dedup="q.response | words | unique"), names).decide(lambda columns: samples)
    assert found.original.tolist() == [-1, -1, -1, -1, 1]
    found = Selector(Select(where="q.response | words | select('equalto', 'a')"), names).decide(
        lambda columns: samples
    )
    assert (found.verdicts == Verdict.WHERE).tolist() == [False, True, True, False, True]
    found = Selector(Select(dedup="{1: q.response, 'b': 2}"), names).decide(lambda columns: samples)
    assert {*found.verdicts.tolist()} == {1}
    assert "it cannot be compared" in found.faults[0]


def test_what_gives_patterns_their_meaning_is_part_of_the_identity(answers: Path) -> None:
    plain = select_samples(answers, Select(where="topic == 'x'"), Path("plain"))
    found = select_samples(answers, Select(where="topic | regex_search('x') == 'x'"), Path("found"))
    identities = [require_plan(RunDir(one.directory))["identity"]["select"] for one in (plain, found)]
    assert ["patterns" in identity for identity in identities] == [False, True]
    assert identities[1]["patterns"] == "re2"
    (command,) = re.findall(r"^synthia-batch select .*", Path("found/README.md").read_text(), re.MULTILINE)
    assert "--patterns" not in command
    assert plain.kept == found.kept > 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("judged.json.score >= 7", True),
        ("judged.json.score >= 9 or topic == 'x'", True),
        ("judged.json.nothing >= 0", False),
        ("judged.json.nothing != 0", False),
        ("judged.json.nothing.deeper + 1 > 0", False),
        ("score > 0", False),
        ("judged.json.note | lower", "good"),
        ("judged.json['score'] * 2", 16),
        ("judged.response | regex_search('score\": (.)')", "8"),
        ("(judged.response | regex_search('score\": (.)') | number) == 8", True),
        ("topic | words | length", 1),
        ("'1,024.5' | number + judged.completion_tokens", 1027.5),
        ('row["topic"] == "x" and row["judged"].json.score == 8', True),
        ("'{\"a\": [1]}' | json == topic", False),
        ("judged.system is defined", True),
        ("answers.response == 'So.' and answers.json.x is not defined", True),
        ('row["answers"].row_index', 7),
        ('row["row"] == "R" and row["topic"] == "x" and row["my col"] == 1', True),
        ("score is defined", False),
        ("score is not defined and topic is defined", True),
        ("judged.system == 'none'", True),
    ],
)
def test_expressions(text: str, value: Any) -> None:
    response = json.dumps({"score": 8, "note": "GOOD", "nothing": None})
    row: dict[str, Any] = {"id": "1", "topic": "x", "score": None, "response": response, "system": "none"}
    row |= {"row": "R", "my col": 1, "completion_tokens": 3, "answers": {"response": "So.", "row_index": 7}}
    assert Expression("where", text, NAMES).evaluate(row) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("judgd.response", "where: judgd.response: there is no judgd; did you mean judged?"),
        ("judged.respons", "where: judged.respons: judged has no respons; did you mean response?"),
        ("judged", "where: judged: judged is no value: write judged.COLUMN, one of response, system"),
        ("self.x == topic", 'self means the template here: write row["self"]'),
        (" or ".join(f"topic == 'v{n}'" for n in range(1000)), "no expression that can be used"),
        ("(" * 400 + "topic" + ")" * 400, "no expression that can be used: it is too long"),
        ("1 > 2", 'it reads no column; there are id, topic, score, row["row"], row["my col"], answers'),
        ("topic >", "where: topic >: "),
        ("topic | regex_search('(?=x)')", "regex_search: (?=x): invalid perl operator"),
        ("topic | regex_search('(')", "regex_search: (: missing )"),
        ("topic | regex_search(pattern='(')", "regex_search: (: missing )"),
        ("[topic] | map('regex_search', '(') | first", "regex_search: (: missing )"),
        ("row.topic()", "where: row.topic(): row can only be used as row"),
        ("topic | random", "where: topic | random: "),
        ('row["topc"]', "did you mean topic"),
        ("topic is none", "null is nothing, which no comparison finds: ask with `is defined`"),
        ("not (topic is not none)", "ask with `is defined`"),
        ("none != topic", "ask with `is defined`"),
        ("topic == null", "there is no null"),
    ],
)
def test_a_wrong_expression_is_refused_with_what_is_meant(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as found:
        Expression("where", text, NAMES)
    assert fault in str(found.value)


@pytest.mark.parametrize("score", [10**400, float("inf"), float("nan"), "8", [8], None])
def test_what_is_no_finite_number_is_no_score(score: Any) -> None:
    assert math.isnan(read_number(score))
    assert (read_number(True), read_number(Decimal("1.5")), read_number(-3)) == (1.0, 1.5, -3.0)


def test_a_pattern_on_which_python_would_backtrack_for_years_ends() -> None:
    expression = Expression("where", "judged.response | regex_search('^(a+)+$')", NAMES)
    assert not expression.evaluate({"response": "a" * 100_000 + "!"})
    assert expression.evaluate({"response": "aaa"}) == "aaa"
    assert Expression("where", "topic | regex_search(topic)", NAMES).evaluate({"topic": "é"}) == "é"
    with pytest.raises(ExpressionFailed, match="write a pattern of RE2"):
        Expression("where", "topic | regex_search(topic)", NAMES).evaluate({"topic": "("})


def test_a_response_that_is_no_json_has_none() -> None:
    expression = Expression("where", "judged.json.score >= 0", NAMES)
    assert expression.columns == ("response",)
    assert Expression("where", "answers.json == topic", NAMES).columns == ("answers.response", "topic")
    assert not expression.evaluate({"response": "I think 8."})
    with pytest.raises(ExpressionFailed, match="not supported between"):
        Expression("where", "judged.json.score >= 7", NAMES).evaluate({"response": '{"score": "8"}'})
