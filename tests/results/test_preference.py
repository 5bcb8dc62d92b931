"""Preference pairs: of the answers to one prompt the best and the worst, by an expression."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import call

ENGINE = ("--engine", "scripted", "--pool", "local", "-q")
SCORE = ("--score", "q.completion_tokens")


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """A complete run named `q`: four rows, two system messages, three samples each."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("q.jsonl"), [{"prompt": f"Say {n}", "topic": "xy"[n % 2]} for n in range(4)])
    Path("brief.txt").write_text("Be brief.")
    options = ("--keep-columns", "topic", "-n", "3", "-s", "none", "-s", "@brief.txt")
    assert call(capsys, "run", "q.jsonl", *ENGINE, *options, "-o", "answers").code == 0
    return tmp_path / "answers"


def export(capsys: Any, directory: str, *options: str) -> list[dict[str, Any]]:
    done = call(capsys, "export", directory, *options)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def pair(rows: list[dict[str, Any]], score: str) -> list[tuple[str, str]]:
    """Return the responses of the first best and the first worst sample of each row and system message."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["row_index"], row["system"]), []).append(row)
    pairs = [
        (max(group, key=lambda row: row[score]), min(group, key=lambda row: row[score]))
        for group in groups.values()
    ]
    return [(best["response"], worst["response"]) for best, worst in pairs if best[score] > worst[score]]


def test_the_best_and_the_worst_answer_to_a_prompt_are_a_pair(answers: Path, capsys: Any) -> None:
    rows = pq.read_table(answers / "data").to_pylist()
    records = export(capsys, "answers", "--to", "preference", *SCORE)
    assert [(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in records] == pair(
        rows, "completion_tokens"
    )
    by_answer = {row["response"]: row for row in rows}
    for one in records:
        best, worst = (by_answer[one[side][0]["content"]] for side in ("chosen", "rejected"))
        assert one["prompt"] == best["messages"][:-1] == worst["messages"][:-1]
        assert one["chosen"] == best["messages"][-1:]
        assert (one["score_chosen"], one["score_rejected"]) == (
            best["completion_tokens"],
            worst["completion_tokens"],
        )


def test_prompts_without_a_pair_are_counted(answers: Path, capsys: Any) -> None:
    done = call(capsys, "export", "answers", "--to", "preference", *SCORE, "--min-gap", "1000")
    assert (done.code, done.out) == (0, "")
    assert (
        "8 prompts left out: fewer than two different answers with a score, or not more than 1000 apart"
        in done.err
    )
    one_score = "1 if q.sample_index == 0 else q.json.nothing"
    done = call(capsys, "export", "answers", "--to", "preference", "--score", one_score)
    assert "8 prompts left out" in done.err


def test_answers_are_paired_by_what_a_later_run_says_of_them(answers: Path, capsys: Any) -> None:
    Path("judge.j2").write_text("Rate {{ q.response }}")
    judge = ("--prompt-template", "judge.j2", "--keep-columns", "q", "--set", "name=judge", "-o", "judged")
    assert call(capsys, "run", "answers", *ENGINE, *judge).code == 0
    rows = [
        {**row["q"], "score": row["completion_tokens"]} for row in pq.read_table("judged/data").to_pylist()
    ]
    records = export(capsys, "judged", "--to", "preference", "--score", "judge.completion_tokens")
    assert [(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in records] == pair(
        rows, "score"
    )
    assert {one["prompt"][-1]["content"] for one in records} <= {f"Say {n}" for n in range(4)}


def test_an_answer_that_several_samples_rate_has_their_mean_and_is_no_pair_with_itself(
    answers: Path, capsys: Any
) -> None:
    Path("judge.j2").write_text("Rate {{ q.response }}")
    judge = ("--prompt-template", "judge.j2", "--keep-columns", "q", "-n", "3", "--set", "name=judge")
    assert call(capsys, "run", "answers", *ENGINE, *judge, "-o", "judged").code == 0
    scores: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    for row in pq.read_table("judged/data").to_pylist():
        of_row = scores.setdefault((row["q"]["row_index"], row["q"]["system"]), {})
        of_row.setdefault(row["q"]["sample_index"], []).append(row["completion_tokens"])
    records = export(capsys, "judged", "--to", "preference", "--score", "judge.completion_tokens")
    means = [[sum(one) / 3 for one in of_row.values()] for of_row in scores.values()]
    wanted = [(max(of_row), min(of_row)) for of_row in means if max(of_row) > min(of_row)]
    for one, (best, worst) in zip(records, wanted, strict=True):
        assert (one["score_chosen"], one["score_rejected"]) == (pytest.approx(best), pytest.approx(worst))
    assert all(one["chosen"] != one["rejected"] for one in records)


def test_answers_to_other_earlier_turns_are_no_pair(answers: Path, capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"turns": ["Hi", "And?"]}, {"turns": ["Ho", "So?"]}])
    assert call(capsys, "run", "t.jsonl", *ENGINE, "-n", "4", "-o", "talks").code == 0
    rows = {row["response"]: row["messages"] for row in pq.read_table("talks/data").to_pylist()}
    for one in export(capsys, "talks", "--to", "preference", "--score", "t.completion_tokens"):
        for side in ("chosen", "rejected"):
            assert rows[one[side][0]["content"]][:-1] == one["prompt"]


def test_truncated_answers_are_left_out_by_what_they_are_not_by_their_judge(
    answers: Path, capsys: Any
) -> None:
    Path("judge.j2").write_text("Rate {{ q.response }}")
    cut = ("-n", "3", "--max-tokens", "8", "--set", "name=q", "-o", "cut")
    assert call(capsys, "run", "q.jsonl", *ENGINE, *cut).code == 0
    judge = ("--prompt-template", "judge.j2", "--keep-columns", "q", "--set", "name=judge", "-o", "judged")
    assert call(capsys, "run", "cut", *ENGINE, *judge).code == 0
    reasons = {row["response"]: row["finish_reason"] for row in pq.read_table("cut/data").to_pylist()}
    assert set(reasons.values()) == {"stop", "length"}
    flags = ("--to", "preference", "--score", "judge.completion_tokens")
    for one in export(capsys, "judged", *flags, "--drop-truncated"):
        assert reasons[one["chosen"][0]["content"]] == reasons[one["rejected"][0]["content"]] == "stop"


def test_a_score_that_fails_is_counted_with_its_fault(answers: Path, capsys: Any) -> None:
    done = call(capsys, "export", "answers", "--to", "preference", "--score", "1 / (q.sample_index * 0)")
    assert "the score failed on 24 samples, such as 1 / (q.sample_index * 0): division by zero" in done.err


def test_trl_takes_the_pairs_and_renders_them(answers: Path, capsys: Any) -> None:
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational

    from synthia_batch.models.locate import locate_model

    tokenizer = AutoTokenizer.from_pretrained(locate_model("demo", None).path)
    record = export(capsys, "answers", "--to", "preference", *SCORE)[-1]
    assert is_conversational(record)
    rendered = apply_chat_template(record, tokenizer)
    assert "Be brief." in rendered["prompt"]
    for side in ("chosen", "rejected"):
        assert record[side][0]["content"] in rendered[side]
        assert "Be brief." not in rendered[side]


def test_axolotl_and_llama_factory_get_the_forms_that_they_read(answers: Path, capsys: Any) -> None:
    whole = export(capsys, "answers", "--to", "preference", *SCORE)
    for one, other in zip(
        whole, export(capsys, "answers", "--to", "preference-messages", *SCORE), strict=True
    ):
        assert other == {
            "messages": one["prompt"],
            "chosen": one["chosen"][0],
            "rejected": one["rejected"][0],
        }
    names = {"system": "system", "user": "human"}
    for one, other in zip(
        whole, export(capsys, "answers", "--to", "preference-sharegpt", *SCORE), strict=True
    ):
        assert other == {
            "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in one["prompt"]],
            "chosen": {"from": "gpt", "value": one["chosen"][0]["content"]},
            "rejected": {"from": "gpt", "value": one["rejected"][0]["content"]},
        }
    told = call(capsys, "export", "answers", "--to", "preference-sharegpt", *SCORE, "-o", "pairs.jsonl").err
    entry = json.loads(told[told.index("{") :])
    assert entry["pairs"]["ranking"] is True
    told = call(capsys, "export", "answers", "--to", "preference-messages", *SCORE, "-o", "axolotl.jsonl").err
    assert "rl: dpo" in told
    assert "type: chat_template.default" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "preference"), "--to preference: expected --score EXPRESSION, such as judge.json.score"),
        (("--to", "messages", *SCORE), "--score: --to messages has no pairs; choose --to preference"),
        (("--to", "preference", "--score", "q.tokens"), "q has no tokens"),
        (
            ("--to", "preference", *SCORE, "--min-gap", "-1"),
            "--min-gap -1.0: expected a number of at least 0",
        ),
        (("--to", "preference", *SCORE, "--min-gap", "nan"), "--min-gap nan: expected a number"),
        (("--to", "preference", *SCORE, "--per", "p"), "per: there is no run p; there are q"),
    ],
)
def test_wrong_flags_are_refused(answers: Path, capsys: Any, options: tuple[str, ...], said: str) -> None:
    done = call(capsys, "export", "answers", *options)
    assert done.code == 2
    assert said in done.err
