"""Several samples that become one: their values, the columns of these, and what later steps see."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import call

from synthia_batch.errors import UsageError
from synthia_batch.inputs.records.expressions import SampleNames
from synthia_batch.job.select import Select
from synthia_batch.results.select.decide import Selector
from synthia_batch.results.select.verdicts import Decisions, Verdict
from synthia_batch.runner.selection import select_samples
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan

FILE = """\
name: panel
engine: {kind: scripted, max_num_seqs: 4}
pool: {kind: local}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id, keep_columns: [topic]}
    num_samples: 2
  - name: judge
    input: {prompt_template: judge.j2}
    system: [none, 'Be strict.']
    num_samples: 3
  - name: keep
    select:
      combine:
        per: answer
        tokens: {mean: judge.completion_tokens}
        least: {min: judge.completion_tokens}
        ended: {majority: judge.finish_reason}
        short: {all: judge.completion_tokens < 40}
      where: tokens > 5 and short
      best: tokens
  - name: again
    input: {prompt_template: again.j2}
"""
NAMES = SampleNames(
    job="judge",
    runs={"answer": ("response", "row_index"), "judge": ("response", "completion_tokens")},
    plain=("topic",),
)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline in the current directory: three questions, two answers each, two judges thrice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "xyz"[n % 3]} for n in range(3)]
    write_jsonl(Path("q.jsonl"), rows)
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    Path("again.j2").write_text("{{ tokens }} {{ ended }}: {{ answer.response }}")
    Path("panel.yaml").write_text(FILE)
    return tmp_path / "panel.yaml"


def read(directory: Path, folder: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / folder).to_pylist()
    return rows


def test_judges_of_an_answer_become_one_sample_that_later_stages_can_name(
    pipeline: Path, capsys: Any
) -> None:
    done = call(capsys, "run", "panel.yaml", "-o", "out", "--json")
    assert done.code == 0, done.err
    _, judge, keep, again = (Path(stage["directory"]) for stage in json.loads(done.out)["stages"])
    groups: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in read(judge):
        groups[row["answer"]["row_index"], row["answer"]["sample_index"]].append(row)
    assert [len(group) for group in groups.values()] == [6] * 6
    best: dict[int, dict[str, Any]] = {}
    for group in groups.values():
        tokens = [row["completion_tokens"] for row in group]
        made = {"tokens": sum(tokens) / 6, "least": float(min(tokens)), "ended": "stop"}
        made |= {"short": max(tokens) < 40}
        assert {row["finish_reason"] for row in group} == {"stop"}
        at = group[0]["answer"]["row_index"]
        is_kept = made["tokens"] > 5 and made["short"]
        if is_kept and (at not in best or made["tokens"] > best[at]["tokens"]):
            best[at] = {**group[0], **made}
    kept = read(keep)
    assert kept == list(best.values())
    assert kept
    asked = [row["messages"][0]["content"] for row in read(again)]
    assert asked == [f"{row['tokens']} {row['ended']}: {row['answer']['response']}" for row in kept]
    messages = [row["message"] for row in read(keep, "failed")]
    assert len(kept) + len(messages) == 36
    assert messages.count("combined into r0/0/none/0") == 5
    assert call(capsys, "verify", "out", "--rows").code == 0
    card = (keep / "README.md").read_text()
    assert "| tokens | `double` | mean of `judge.completion_tokens`, of several samples |" in card
    assert "--combine=tokens=mean:judge.completion_tokens" in card
    told = json.loads(call(capsys, "report", "out", "--json").out)
    assert told["stages"][2]["dropped"]["combined into another"] == 30
    scores = {score["text"]: score for score in told["scores"]}
    assert scores["judge.completion_tokens"]["agreement"]["rows"] == 6
    assert scores["tokens"]["read"] == len(kept)


def test_the_command_combines_as_a_stage_does(pipeline: Path, capsys: Any) -> None:
    judge = call(capsys, "run", "panel.yaml", "-o", "out", "--until", "judge", "-q").out.strip()
    flags = ("--combine", "tokens=mean:judge.completion_tokens", "--where", "tokens > 5", "-o", "by flags")
    done = call(capsys, "select", judge, *flags, "--combine-per", "answer")
    assert done.code == 0, done.err
    assert "(combined 30" in done.err
    steps = {"per": "answer", "tokens": {"mean": "judge.completion_tokens"}}
    select_samples(Path(judge), Select.model_validate({"combine": steps, "where": "tokens > 5"}), Path("by"))
    assert read(Path("by flags")) == read(Path("by"))
    for wrong, said in (
        (
            ("--combine", "tokens=meen:judge.completion_tokens"),
            "expected NAME=HOW:EXPRESSION, with HOW one of",
        ),
        (("--combine", "topic=mean:judge.completion_tokens"), "there is a column topic already"),
        (("--combine", "seed=mean:judge.completion_tokens"), "there is a column seed already"),
        (("--combine", "a b=mean:judge.completion_tokens"), "can be no value's name"),
        (("--combine", "a=mean:judge.tokens"), "combine.a.mean: judge.tokens: judge has no tokens; did you"),
        (("--combine-per", "answer", "--limit", "3"), "--combine-per belongs to combine, which is not set"),
        (("--combine", "a=all:topic", "--combine-per", "anser"), "combine.per: there is no run anser; there"),
        (("--combine", "a=all:topic", "--where", "b"), "where: b: there is no b"),
    ):
        refused = call(capsys, "select", judge, *wrong, "-o", "wrong")
        assert (refused.code, said in refused.err) == (2, True), refused.err
    assert not Path("wrong").exists()


def test_a_selection_of_a_selection_keeps_its_columns_and_can_name_them(pipeline: Path, capsys: Any) -> None:
    judge = call(capsys, "run", "panel.yaml", "-o", "out", "--until", "judge", "-q").out.strip()
    steps = {"vote": {"majority": "judge.finish_reason"}}
    select_samples(Path(judge), Select.model_validate({"combine": steps}), Path("first"))
    select_samples(
        Path("first"), Select(best="answer.completion_tokens", where="vote == 'stop'"), Path("second")
    )
    rows = read(Path("second"))
    assert {row["vote"] for row in rows} == {"stop"}
    assert [column["name"] for column in require_plan(RunDir(Path("second")))["scan"]["kept"]][-1] == "vote"
    with pytest.raises(UsageError, match=r"combine\.vote: there is a column vote already"):
        select_samples(Path("first"), Select.model_validate({"combine": steps}), Path("x"))


def test_plan_counts_one_sample_for_several(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FILE.replace("      best: tokens\n", ""))
    for per in ("        per: answer\n", ""):
        pipeline.write_text(pipeline.read_text().replace("        per: answer\n", per))
        told = json.loads(call(capsys, "plan", "panel.yaml", "--json").out)
        assert [stage["most_samples"] for stage in told["stages"]] == [6, 36, 6, 6]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({}, "Input should name a value"),
        ({"score": {}}, "Input should have one of mean, median, min, max, majority, all"),
        ({"score": {"mean": "topic", "max": "topic"}}, "Input should have one of mean"),
        ({"score": {"mean": None}}, "Input should have one of mean"),
        ({"row": {"mean": "topic"}}, "'row' can be no value's name"),
    ],
)
def test_a_step_that_combines_nothing_is_refused(step: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Select.model_validate({"combine": step})


def decide(select: dict[str, Any], samples: list[dict[str, Any]]) -> Decisions:
    return Selector(Select.model_validate(select), NAMES).decide(lambda columns: samples)


def make_samples(said: list[tuple[int, Any]]) -> list[dict[str, Any]]:
    """Return samples of judges: of which answer, and what they say, None for no JSON."""
    return [
        {
            "id": f"j{number}", "system": "none", "sample_index": 0, "row_index": number, "topic": "x",
            "response": "no JSON" if value is None else json.dumps({"score": value}),
            "completion_tokens": 3,
            "answer": {"id": "r", "system": "none", "sample_index": answer, "row_index": 0, "response": "."},
        }
        for number, (answer, value) in enumerate(said)
    ]  # fmt: skip


def compute(how: str, values: list[Any]) -> Any:
    """Return what a reader of the documentation would."""
    if not values:
        return None
    ascending = sorted(values)
    middle = len(values) // 2
    counts = [values.count(value) for value in values]
    return {
        "mean": sum(values) / len(values),
        "median": (ascending[middle] + ascending[-middle - 1]) / 2,
        "min": ascending[0],
        "max": ascending[-1],
        "majority": values[counts.index(max(counts))],
        "all": 0 not in values,
    }[how]


@given(
    said=st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 3)), min_size=1, max_size=25),
    bound=st.integers(0, 3),
)
@settings(deadline=None)
def test_values_are_those_of_a_plain_reading(said: list[tuple[int, Any]], bound: int) -> None:
    groups: dict[int, list[int]] = defaultdict(list)
    for number, (answer, _) in enumerate(said):
        groups[answer].append(number)
    for how in ("mean", "median", "min", "max", "majority", "all"):
        combine = {"per": "answer", "made": {how: "judge.json.score"}}
        found = decide({"combine": combine, "where": f"made >= {bound}"}, make_samples(said))
        for members in groups.values():
            first, *others = members
            value = compute(how, [said[number][1] for number in members if said[number][1] is not None])
            assert found.read(first) == {"made": value}
            is_kept = value is not None and value >= bound
            assert found.verdicts[first] == (Verdict.KEPT if is_kept else Verdict.WHERE)
            assert {*found.verdicts[others].tolist()} <= {Verdict.COMBINED}
            assert {*found.original[others].tolist()} <= {first}


@pytest.mark.parametrize(
    ("values", "kind", "vote"),
    [
        (["b", "a", "a", "b"], "string", "b"),
        ([True, False, False], "bool", False),
        ([7, 8.0, 8], "int64", 8),
        ([7.5, 7, 7.5], "double", 7.5),
        ([[1], {"a": 1}, [1]], "string", "[1]"),
        (["7", 7, 7], "string", "7"),
        ([2**70, 2**70], "string", str(2**70)),
        ([None, None], "string", None),
    ],
)
def test_a_majority_has_the_type_of_its_values(values: list[Any], kind: str, vote: Any) -> None:
    combine = {"per": "answer", "made": {"majority": "judge.json.score"}}
    found = decide({"combine": combine}, make_samples([(0, value) for value in values]))
    assert [column.type for column in found.added] == [kind]
    assert found.read(0) == {"made": vote}


def test_numbers_beyond_all_numbers_are_none() -> None:
    for how in ("mean", "median"):
        combine = {"per": "answer", "made": {how: "judge.json.score"}}
        found = decide({"combine": combine}, make_samples([(0, 1.7e308), (0, 1.7e308)]))
        assert found.read(0) == {"made": None}


def test_a_sample_on_which_an_expression_fails_is_left_out_and_named() -> None:
    combine = {"per": "answer", "made": {"max": "6 // judge.json.score"}}
    found = decide({"combine": combine}, make_samples([(0, 0), (0, 3), (0, 2)]))
    assert found.verdicts.tolist() == [Verdict.FAILED, Verdict.KEPT, Verdict.COMBINED]
    assert found.read(1) == {"made": 3.0}
    assert found.explain(2, str)[1] == "combined into 1"
    assert "division" in found.faults[0]


def test_without_a_run_the_samples_of_a_row_are_one_and_a_sample_of_nothing_is_alone() -> None:
    samples = make_samples([(0, 1), (0, 2), (0, 3)])
    samples[2]["row_index"] = samples[1]["row_index"]
    samples[2]["id"] = samples[1]["id"]
    found = decide({"combine": {"made": {"mean": "judge.json.score"}}}, samples)
    assert (found.original.tolist(), found.read(1)) == ([-1, -1, 1], {"made": 2.5})
    samples[0]["answer"] = samples[1]["answer"] = None
    found = decide({"combine": {"per": "answer", "made": {"mean": "judge.json.score"}}}, samples)
    assert found.original.tolist() == [-1, -1, -1]
