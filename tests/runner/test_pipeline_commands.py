"""What commands say and do over the stages of a pipeline: its file, and its directory in any state."""

import json
import re
import shutil
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import Killed, call, dying_at

from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock

FILE = """\
name: judged
engine: {kind: scripted, max_num_seqs: 4}
pool: {kind: local}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id, keep_columns: [topic]}
    num_samples: 2
  - name: judge
    input: {prompt_template: judge.j2}
  - name: keep
    select:
      where: topic != 'z'
      best: judge.completion_tokens
"""
FAILING = FILE.replace(
    "    num_samples: 2\n", "    num_samples: 2\n    engine: {fail_every: 3, fail_while_missing: mended}\n"
)
ROWS = 12


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of three stages in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_jsonl(
        Path("q.jsonl"), [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "xyz"[n % 3]} for n in range(ROWS)]
    )
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    Path("judged.yaml").write_text(FILE)
    return tmp_path / "judged.yaml"


def play(capsys: Any, *flags: str) -> dict[str, Path]:
    """Run the pipeline into out/ and return the stages' directories by name."""
    done = call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json", *flags)
    assert done.code == 0, done.err
    return {stage["name"]: Path(stage["directory"]) for stage in json.loads(done.out)["stages"]}


def test_a_pipeline_that_ended_in_order_is_incomplete_and_says_what_is_not_begun(
    pipeline: Path, capsys: Any
) -> None:
    play(capsys, "--until", "judge")
    told = call(capsys, "status", "out").out.splitlines()
    assert told[0] == "out  incomplete, stages answer, judge: complete; keep: not begun"
    verified = call(capsys, "verify", "out")
    assert (verified.code, verified.out.splitlines()[-1]) == (0, "stage keep: not begun")
    assert json.loads(call(capsys, "verify", "out", "--json").out)["not_begun"] == ["keep"]
    assert told[-1] == "next      run the pipeline again"
    assert json.loads(call(capsys, "status", "out", "--json").out)["state"] == "incomplete"
    watched = call(capsys, "status", "out", "--watch")
    assert (watched.code, watched.out.splitlines()[0]) == (0, told[0])
    shutil.copytree("out", "outputs/out")
    listed = call(capsys, "status").out
    assert listed == "outputs/out  incomplete, stages answer, judge: complete; keep: not begun\n"


def test_what_a_selection_drops_has_not_failed(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FAILING)
    told = json.loads(call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json").out)["stages"]
    _, judge, keep = told
    kept, dropped = keep["kept"], keep["not_selected"]
    assert (judge["not_selected"], keep["failed"], keep["samples"]) == (0, 0, kept + dropped)
    run = keep["directory"]
    status = json.loads(call(capsys, "status", run, "--json").out)
    assert (status["finished"], status["not_selected"], status["failed"]) == (kept, dropped, 0)
    assert (status["failures"], status["next"]) == ({}, f"synthia-batch report {run}")
    lines = call(capsys, "status", run).out.splitlines()
    assert lines[1].endswith(f"(100.0%): {kept} finished, {dropped} not selected, 0 failed")
    assert call(capsys, "report", run).code == 0
    page = Path(run, "report.html").read_text()
    assert f"samples are finished, {dropped} not selected." in page
    assert "failed: not_selected" not in page
    listed = call(capsys, "failed", run)
    assert listed.err.splitlines()[0] == f"{dropped} samples not selected (no failures)"
    assert len(listed.out.splitlines()) == dropped
    stages = call(capsys, "status", "out").out.splitlines()
    assert stages[1] == "answer  complete 24/24 (100%), 8 failed"
    assert (
        stages[3]
        == f"keep    complete {kept + dropped}/{kept + dropped} (100%), {dropped} not selected, 0 failed"
    )


def test_what_is_too_long_in_a_stage_is_for_the_pipelines_file(pipeline: Path, capsys: Any) -> None:
    long = {"id": "long", "prompt": "long " * 60, "topic": "x"}
    write_jsonl(Path("q.jsonl"), [{"id": "r", "prompt": "Say", "topic": "x"}, long])
    short = "    num_samples: 2\n    model: {max_model_len: 200}"
    pipeline.write_text(FILE.replace("    num_samples: 2", short))
    answer = play(capsys)["answer"]
    advice = "set model.max_model_len of this stage in the pipeline's file and run it again"
    assert advice in call(capsys, "failed", str(answer)).err
    pipeline.write_text(FILE)
    assert json.loads(call(capsys, "status", str(play(capsys)["answer"]), "--json").out)["failed"] == 0


def test_an_expression_that_fails_on_a_sample_is_a_failure_of_the_selection(
    pipeline: Path, capsys: Any
) -> None:
    wrong = "where: (1 / (answer.sample_index - 1) != 5) and topic != 'z'"
    pipeline.write_text(FILE.replace("where: topic != 'z'", wrong))
    keep = play(capsys)["keep"]
    status = json.loads(call(capsys, "status", str(keep), "--json").out)
    assert status["failures"] == {"expression_failed": ROWS}
    assert status["failed"] == ROWS
    assert status["not_selected"] == 2 * ROWS - ROWS - status["finished"]


def test_a_stage_whose_directory_is_lost_is_named_by_every_command_that_lists_stages(
    pipeline: Path, capsys: Any
) -> None:
    made = play(capsys)
    shutil.rmtree(made["keep"])
    told = call(capsys, "failed", "out")
    lost = f"{made['keep'].name}: the run of the stage keep was complete, and is not there: restore it"
    assert (told.code, lost in told.err) == (0, True), told.err
    assert told.err.count("no sample has failed") == 2
    told = call(capsys, "verify", "out", "--json")
    assert (told.code, len(json.loads(told.out)["stages"])) == (4, 3)
    told = call(capsys, "status", "out")
    assert told.out.splitlines()[0] == "out  incomplete, stages answer, judge: complete; keep: lost"
    for command in (("export", "out", "--to", "alpaca"), ("select", "out", "--limit", "1")):
        told = call(capsys, *command)
        assert (told.code, f"the pipeline misses {made['keep'].name}, the run of its last" in told.err) == (
            2,
            True,
        )
    assert call(capsys, "report", "out").code == 0
    page = Path("out/report.html").read_text()
    assert "not begun" not in page
    assert page.count("lost: its directory is not there") == page.count("Lost: keep. It was complete") == 1
    told = json.loads(call(capsys, "report", "out", "--json").out)
    assert (told["state"], told["lost"], told["not_begun"]) == ("incomplete", ["keep"], [])


def test_a_retry_of_a_stage_writes_the_report_of_the_pipeline_anew(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FAILING)
    made, page = play(capsys), Path("out/report.html")
    assert not page.exists()
    Path("mended").touch()
    assert call(capsys, "retry", str(made["answer"]), "-q").code == 0
    assert not page.exists(), "one that it never had is not written"
    Path("mended").unlink()
    shutil.rmtree("out")
    made = play(capsys, "--set", "report=true")
    assert "Complete: " in page.read_text()
    Path("mended").touch()
    assert call(capsys, "retry", str(made["answer"]), "-q").code == 0
    assert "Not complete: judge, keep to be made." in page.read_text()


def test_a_retry_that_is_killed_leaves_no_report_of_the_state_before(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FAILING)
    made, page = play(capsys, "--set", "report=true"), Path("out/report.html")
    Path("mended").touch()
    shutil.copytree("out", "before")
    for number in count(1):
        shutil.rmtree("out")
        shutil.copytree("before", "out", symlinks=True)
        try:
            with dying_at(number):
                assert call(capsys, "retry", str(made["answer"]), "-q").code == 0
            break
        except Killed:
            is_as_before = (made["answer"] / "manifest.json").exists()
            assert is_as_before or not page.exists(), number
    assert number > 10
    assert "Not complete: judge, keep to be made." in page.read_text()


def test_a_score_near_the_largest_number_does_not_lose_the_page(pipeline: Path, capsys: Any) -> None:
    huge = "best: 1.7e308 if answer.sample_index else 5"
    pipeline.write_text(FILE.replace("best: judge.completion_tokens", huge))
    play(capsys)
    told = call(capsys, "report", "out")
    assert told.code == 0, told.err
    (score,) = json.loads(call(capsys, "report", "out", "--json").out)["scores"]
    assert (score["mean"], score["missing"]) == (5, ROWS)


def test_a_pipeline_whose_selection_keeps_nothing_says_what_is_next_and_prints_its_json(
    pipeline: Path, capsys: Any
) -> None:
    pipeline.write_text(FAILING.replace("topic != 'z'", "topic == 'none'"))
    told = call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json")
    assert told.code == 3
    assert "change what is selected and run the command again" in told.err
    found = json.loads(told.out)
    assert (found["directory"], found["state"]) == ("out", "incomplete")
    answer, judge, keep = found["stages"]
    assert (answer["kept"], answer["failed"]) == (judge["kept"], 8)
    counts = {"samples": judge["kept"], "kept": 0, "not_selected": judge["kept"], "failed": 0}
    assert keep == {"name": "keep", "directory": None, "state": "nothing_selected", **counts}
    told = call(capsys, "select", judge["directory"], "--where", "topic == 'none'", "--json")
    assert told.code == 3
    nothing = {"directory": None, "samples": judge["kept"], "kept": 0, "dropped": {"where": judge["kept"]}}
    assert json.loads(told.out) == nothing


def test_preview_shows_the_first_stage_and_what_the_others_ask(pipeline: Path, capsys: Any) -> None:
    told = call(capsys, "preview", "judged.yaml")
    assert told.code == 0, told.err
    assert re.findall(r"^stage .*", told.out, re.MULTILINE) == [
        "stage answer:",
        f"stage judge: reads answer, asks by {Path('judge.j2')}",
        "stage keep: reads judge, selects by where: topic != 'z', best: judge.completion_tokens",
    ]
    assert told.out.count("Say ") == 1
    assert "  | {{ topic }}: rate {{ answer.response }}\n" in told.out
    as_json = json.loads(call(capsys, "preview", "judged.yaml", "-n", "2", "--json").out)
    assert [row["id"] for row in as_json["first"]["rows"]] == ["r0", "r1"]
    assert as_json["later"][0]["template"] == "{{ topic }}: rate {{ answer.response }}"
    assert not Path("outputs").exists()


def test_preview_with_answers_shows_the_way_of_a_row_and_leaves_the_pipeline_to_be_run(
    pipeline: Path, capsys: Any
) -> None:
    told = call(capsys, "preview", "judged.yaml", "--answers", "-q", "-o", "out")
    assert told.code == 0, told.err
    assert re.findall(r"^stage .*", told.out, re.MULTILINE) == [
        "stage answer: 2 finished, 0 not",
        "stage judge: 2 finished, 0 not",
        "stage keep: 1 finished, 1 not",
    ]
    assert "not_selected: not the best of its row" in told.out
    assert [path.name for path in Path("out").iterdir()] == [".synthia"]
    trial = Path("out/.synthia/first-1")
    assert f"no part of the pipeline: rm -r {trial} removes them" in told.err
    for command in ("status", "failed", "verify"):
        early = call(capsys, command, "out")
        assert early.code == 2
        assert f"a pipeline that has not begun; rows of it were tried in {trial}" in early.err
    assert call(capsys, "status", str(trial)).out.startswith("first-1  complete")
    shutil.copytree("out", "outputs/tried")
    assert call(capsys, "status").err.startswith("outputs/tried: a pipeline that has not begun; rows of it")
    stamps = {path: path.stat().st_mtime_ns for path in trial.glob("stages/*/data/*")}
    again = call(capsys, "preview", "judged.yaml", "--answers", "-q", "-o", "out", "--json")
    stages = json.loads(again.out)["stages"]
    assert [len(stage["samples"]) for stage in stages] == [2, 2, 1]
    assert {path: path.stat().st_mtime_ns for path in trial.glob("stages/*/data/*")} == stamps
    whole = play(capsys)
    way = stages[1]["samples"][0]
    rows = pq.read_table(whole["judge"] / "data").to_pylist()
    assert [row["messages"] for row in rows if row["id"] == way["id"]] == [way["messages"]]
    assert call(capsys, "verify", "out").code == 0
    status = call(capsys, "status", "out").out.splitlines()
    assert f"tried     {trial}, no part of the pipeline: rm -r {trial} removes it" in status
    assert json.loads(call(capsys, "status", "out", "--json").out)["trials"] == [str(trial)]
    shutil.rmtree(trial)
    assert json.loads(call(capsys, "status", "out", "--json").out)["trials"] == []
    assert call(capsys, "verify", "out").code == 0


@pytest.mark.parametrize("command", [("preview", "--answers"), ("plan", "--probe", "2")])
def test_rows_are_not_tried_while_the_pipeline_is_run(
    pipeline: Path, capsys: Any, command: tuple[str, ...]
) -> None:
    Path("out/.synthia").mkdir(parents=True)
    with RunLock(RunDir(Path("out")), datetime.now().astimezone()):
        told = call(capsys, command[0], "judged.yaml", *command[1:], "-o", "out")
    assert (told.code, "error: out is in use by pid" in told.err) == (4, True), told.err
    assert not [*Path("out/.synthia").glob("first-*")]
    assert call(capsys, command[0], "judged.yaml", *command[1:], "-o", "out").code == 0


@pytest.mark.parametrize("command", [("preview", "--answers"), ("plan", "--probe", "2"), ("run",)])
def test_a_trial_of_which_every_sample_fails_exits_as_the_run(
    pipeline: Path, capsys: Any, command: tuple[str, ...]
) -> None:
    pipeline.write_text(FILE.replace("num_samples: 2", "engine: {fail_every: 1}"))
    told = call(capsys, command[0], "judged.yaml", *command[1:])
    assert told.code == 3, told.err
    if command != ("run",):
        assert "every stage was reached: it ended in answer, where every sample failed: " in told.err


def test_a_refused_trial_leaves_no_directory(pipeline: Path, capsys: Any) -> None:
    Path("q.jsonl").unlink()
    assert call(capsys, "preview", "judged.yaml", "--answers", "-o", "out").code == 2
    assert not Path("out").exists()


def test_a_way_that_ends_says_why(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FILE.replace("topic != 'z'", "topic == 'z'"))
    told = call(capsys, "preview", "judged.yaml", "--answers", "-q", "-o", "out")
    assert told.code == 0
    assert "not every stage was reached: " in told.err
    assert "none of its 2 samples is kept: where 2" in told.err
    assert told.out.count("\nstage ") == 1
    wrong = call(capsys, "preview", "judged.yaml", "--answers", "--random")
    assert (wrong.code, "--random: --answers takes the first rows" in wrong.err) == (2, True)


def test_a_probe_of_all_rows_tells_what_the_run_makes(pipeline: Path, capsys: Any) -> None:
    told = call(capsys, "plan", "judged.yaml", "--probe", str(ROWS), "--json", "-o", "out")
    assert told.code == 0, told.err
    probe = json.loads(told.out)["probe"]
    made = json.loads(call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json").out)["stages"]
    for found, stage in zip(probe["stages"], made, strict=True):
        exact = {"low": stage["samples"], "high": stage["samples"]}
        assert (found["name"], found["samples"], found["kept"]) == (stage["name"], exact, stage["kept"])
    tokens = sum(
        row["completion_tokens"] for row in pq.read_table(f"{made[1]['directory']}/data").to_pylist()
    )
    assert probe["stages"][1]["tokens"] == {"low": tokens, "high": tokens}
    assert 0 < probe["seconds"]["low"] <= probe["seconds"]["high"]


def test_a_probe_of_some_rows_gives_ranges_within_what_is_planned(pipeline: Path, capsys: Any) -> None:
    told = call(capsys, "plan", "judged.yaml", "--probe", "6", "-o", "out")
    assert told.code == 0, told.err
    lines = told.out[told.out.index("probe: ") :].splitlines()
    assert lines[0] == "probe: the first 6 rows through all stages, in out/.synthia/first-6"
    assert re.match(r"answer  keeps 12 of 12; in all 24 samples, [\d,]+ to [\d,]+ tokens, ", lines[1])
    assert re.match(r"judge   keeps 12 of 12; in all [\d.]+ to 24 samples, ", lines[2])
    assert re.match(r"keep    keeps \d of 12; in all [\d.]+ to 24 samples$", lines[3])
    assert lines[4].startswith("whole pipeline: ")


def test_doctor_checks_every_stage_and_the_machine_once(pipeline: Path, capsys: Any) -> None:
    told = call(capsys, "doctor", "judged.yaml")
    names = [line[4:].partition(": ")[0] for line in told.out.splitlines()]
    assert told.code == 0, told.out
    assert names.count("memory") == names.count("engine") == 1
    assert "ok  answer: input: q.jsonl" in told.out
    assert [name for name in names if name in ("answer", "judge", "keep")] == ["answer", "answer", "judge"]
    Path("q.jsonl").unlink()
    told = call(capsys, "doctor", "judged.yaml")
    assert (told.code, "BAD answer: input: q.jsonl" in told.out) == (2, True)


def test_tune_measures_the_first_stage_and_says_so(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FILE.replace("max_num_seqs: 4", "max_num_seqs: 4, latency_ms: 5"))
    told = call(capsys, "tune", "judged.yaml", "--prompts", "8", "--json", "-q")
    assert told.code == 0, told.err
    assert "measuring the first stage, answer; stages with its model use what is found" in told.err
    assert json.loads(told.out)["trials"]


@pytest.mark.parametrize("command", ["run", "plan", "validate", "preview", "doctor", "tune"])
def test_every_command_of_a_file_refuses_a_flag_that_is_a_stages_own(
    pipeline: Path, capsys: Any, command: str
) -> None:
    told = call(capsys, command, "judged.yaml", "--temperature", "0.5")
    assert told.code == 2
    assert "sampling: each stage of a pipeline says its own; set it in the file" in told.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize("command", ["plan", "validate"])
def test_whether_it_fits_here_is_for_doctor_to_say(pipeline: Path, capsys: Any, command: str) -> None:
    told = call(capsys, command, "judged.yaml", "--here")
    assert told.code == 2
    assert "`synthia-batch doctor judged.yaml` checks each stage" in told.err


def test_the_card_of_a_stage_that_selects_names_the_stage_it_reads(pipeline: Path, capsys: Any) -> None:
    more = "  - name: few\n    select: {limit: 2}\n"
    pipeline.write_text(FILE + more)
    made = play(capsys)
    for stage, before in (("keep", "judge"), ("few", "keep")):
        command = re.findall(r"^synthia-batch select (\S+) ", (made[stage] / "README.md").read_text(), re.M)
        assert command == [f"stages/{made[before].name}"]
        assert Path("out", command[0]) == made[before]
