"""The report of a pipeline: what became of its samples, the scores, best and worst answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from inside import call

from synthia_batch.results.report.funnel import read_pipeline_report
from synthia_batch.results.report.scores import make_bars

FILE = """\
name: judged
engine: {kind: scripted, max_num_seqs: 4}
pool: {kind: local}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id, keep_columns: [topic], on_bad_row: fail}
    num_samples: 3
  - name: judge
    input: {prompt_template: judge.j2}
    num_samples: 2
    structured: {json_schema: score.json}
  - name: keep
    select:
      where: topic != 'z'
      best: answer.completion_tokens
      per: answer
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of three stages in the current directory, of whose five rows one has an empty question."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SYNTHIA_BATCH_REPORT")
    rows = [{"id": f"r{n}", "prompt": f"Say <b>{n}</b>", "topic": "xyz"[n % 3]} for n in range(4)]
    write_jsonl(Path("q.jsonl"), [*rows, {"id": "r4", "prompt": "", "topic": "x"}])
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    score = {"type": "integer", "minimum": 0, "maximum": 10}
    Path("score.json").write_text(json.dumps({"type": "object", "properties": {"score": score}}))
    Path("judged.yaml").write_text(FILE)
    return tmp_path


def test_a_selection_of_a_selection_has_its_own_reasons(pipeline: Path, capsys: Any) -> None:
    text = FILE.replace("      where: topic != 'z'\n", "      dedup: topic\n").replace(
        "      best: answer.completion_tokens\n      per: answer\n",
        "  - name: few\n    select: {limit: 1}\n",
    )
    Path("judged.yaml").write_text(text)
    done = call(capsys, "run", "judged.yaml", "-o", "out")
    assert (done.code, "could not write the report" in done.err) == (0, False), done.err
    *_, keep, few = json.loads(call(capsys, "report", "out", "--json").out)["stages"]
    assert (keep["samples"], keep["kept"], keep["dropped"]) == (24, 3, {"duplicate: topic": 21})
    assert (few["samples"], few["kept"], few["dropped"]) == (3, 1, {"behind the limit of 1": 2})


def test_the_funnel_counts_every_sample_once(pipeline: Path, capsys: Any) -> None:
    done = call(capsys, "run", "judged.yaml", "-q", "-o", "out")
    assert done.code == 0, done.err
    told = json.loads(call(capsys, "report", "out", "--json").out)
    assert (told["state"], told["not_begun"]) == ("complete", [])
    answer, judge, keep = told["stages"]
    assert (answer["rows"], answer["samples"], answer["kept"]) == (5, 15, 12)
    assert sum(answer["failed"].values()) == 3
    assert (judge["rows"], judge["samples"], judge["kept"], judge["failed"]) == (12, 24, 24, {})
    # Of four rows one is of the topic z; each of the other three has one sample of six that is the best.
    assert keep["samples"] == 24
    assert keep["kept"] == 3
    assert keep["failed"] == {}
    assert keep["dropped"] == {
        "not the best of its row: answer.completion_tokens": 15,
        "where: topic != 'z'": 6,
    }
    assert keep["prompt_tokens"] is None
    assert judge["completion_tokens"] > 0


def test_scores_have_a_distribution_and_judges_an_agreement(pipeline: Path, capsys: Any) -> None:
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    report = read_pipeline_report(Path("out"))
    given, compared = report.scores
    assert (given.text, compared.text) == ("judge.json.score", "answer.completion_tokens")
    assert sum(count for _, count in given.bars) + given.missing == 24
    assert given.agreement is not None
    assert given.agreement.rows == 12
    assert compared.agreement is None  # No judge has given it.
    assert report.pairs
    assert all(pair.chosen.score > pair.rejected.score for pair in report.pairs)


def test_the_page_is_the_same_whenever_it_is_written_and_shows_no_markup_of_answers(
    pipeline: Path, capsys: Any
) -> None:
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    page = Path("out/report.html")
    written = page.read_bytes()
    assert call(capsys, "report", "out").out.strip() == "out/report.html"
    assert page.read_bytes() == written
    text = written.decode()
    assert "<b>0</b>" not in text
    assert "&lt;b&gt;0&lt;/b&gt;" in text
    linked = [path for path in Path("out/stages").iterdir() if f"stages/{path.name}/report.html" in text]
    assert len(linked) == 3


def test_a_pipeline_that_is_not_complete_says_what_is_missing(pipeline: Path, capsys: Any) -> None:
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--until", "answer").code == 0
    assert not Path("out/report.html").exists()
    assert call(capsys, "report", "out", "-o", "page.html").code == 0
    assert "Not complete: judge, keep to be made" in Path("page.html").read_text()


def test_no_page_is_written_if_the_file_says_so(pipeline: Path, capsys: Any) -> None:
    Path("judged.yaml").write_text(FILE + "report: false\n")
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    assert not [*Path("out").rglob("report.html")]


def test_many_values_are_counted_in_ranges_and_few_one_by_one() -> None:
    assert make_bars([1.0, 2.5, 1.0]) == [("1", 2), ("2.5", 1)]
    ranges = make_bars([float(number) for number in range(100)])
    assert (ranges[0], ranges[-1], len(ranges)) == (("0 to 4", 5), ("95 to 99", 5), 20)
    fractions = make_bars([number / 3 for number in range(100)])
    assert (len(fractions), sum(count for _, count in fractions)) == (20, 100)
    odd = make_bars([float(number) for number in range(25)])
    assert (odd[-1], sum(count for _, count in odd)) == (("24 to 25", 1), 25)
