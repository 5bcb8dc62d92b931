"""What `report` says of a run, against the run's own files; and that no run depends on it."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from hostile import TEXTS, add_history, make_hostile_run

from synthia_batch.results.read.counts import LengthHistogram
from synthia_batch.results.read.history import Interval, Loading, coarsen, list_attempts, read_history
from synthia_batch.results.report import answers
from synthia_batch.results.report.bins import make_bins
from synthia_batch.results.report.escape import escape_text, make_visible
from synthia_batch.results.report.page import render_page
from synthia_batch.results.report.plots import default_settings, draw_speed, render_svg
from synthia_batch.results.report.samples import SampleSelection, choose_stride, hash_samples, list_strided
from synthia_batch.results.report.summary import Report, read_report
from synthia_batch.results.report.verdict import assess, format_share
from synthia_batch.storage.atomic import temporary_path
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.parts.columns import read_numbers, read_rows

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q")
ROWS = 1200


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under "out", a complete run: two shards, two systems, cut off at 12 tokens, each ninth failed."""
    home = tmp_path_factory.mktemp("report")
    write_jsonl(home / "q.jsonl", [{"question": f"What is {n % 1100} squared?"} for n in range(ROWS)])
    command = command_of(
        "run", "q.jsonl", *SCRIPTED, "-s", "synthia", "-s", "none", "-o", "out", "--max-tokens", "12",
        "--set", "engine.fail_every=9", "--set", "report=true",
    )  # fmt: skip
    subprocess.run(command, cwd=home, env=make_environment(), check=True, capture_output=True)
    return home


@pytest.fixture(scope="module")
def found(home: Path) -> Report:
    return read_report(home / "out")


def read_data(directory: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(directory / "data").to_pylist())


def find_rank(lengths: list[int], share: float) -> int:
    return sorted(lengths)[max(1, math.ceil(share * len(lengths))) - 1]


def test_the_numbers_are_those_of_the_files(home: Path, found: Report) -> None:
    rows = read_data(home / "out")
    failed = pq.read_table(home / "out" / "failed").to_pylist()
    values = found.to_dict()
    lengths = [row["completion_tokens"] for row in rows]
    assert (values["rows"], values["samples"]) == (ROWS, 2 * ROWS)
    assert (values["finished"], values["failed"]) == (len(rows), len(failed))
    assert values["failures"] == {"scripted_failure": len(failed)}
    assert values["completion_tokens"] == {
        "tokens": sum(lengths),
        "mean": round(sum(lengths) / len(lengths), 1),
        "shortest": min(lengths),
        "p5": find_rank(lengths, 0.05),
        "median": find_rank(lengths, 0.5),
        "p95": find_rank(lengths, 0.95),
        "longest": max(lengths),
    }
    cut = [row for row in rows if row["finish_reason"] == "length"]
    assert values["truncated"] == len(cut) > 100
    assert values["finish_reasons"] == {"length": len(cut), "stop": len(rows) - len(cut)}
    for system in ("synthia", "none"):
        of_system = [row for row in rows if row["system"] == system]
        group = values["systems"][system]
        assert group["finished"] == len(of_system)
        assert group["truncated"] == sum(row["finish_reason"] == "length" for row in of_system)
        assert group["prompt_tokens"]["tokens"] == sum(row["prompt_tokens"] for row in of_system)
    texts = values["texts"]
    assert texts["answers_read"] == texts["answers_finished"] == len(rows)
    assert texts["duplicate"] == len(rows) - len({row["response"] for row in rows})
    histogram = values["completion_histogram"]
    assert sum(histogram["counts"]) == len(rows)
    for low, high, count in zip(
        histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False
    ):
        assert count == sum(low <= length < high for length in lengths)


def test_the_verdict_is_plain_words(home: Path, found: Report) -> None:
    rows = read_data(home / "out")
    cut = sum(row["finish_reason"] == "length" for row in rows)
    failed = 2 * ROWS - len(rows)
    sentences = [sentence.text for sentence in assess(found)]
    assert sentences[0] == f"Complete: {len(rows):,} of 2,400 samples are finished, {failed:,} failed."
    share = round(100 * cut / len(rows))
    reached = sum(row["completion_tokens"] == 12 for row in rows)
    assert f">limit 12, {reached:,} at it</text>" in render_page(found)
    assert sentences[1] == (
        f"{cut:,} of {len(rows):,} answers ({share}%) were cut off at 12 tokens: raise --max-tokens."
    )
    assert f"{failed:,} of 2,400 samples (11%) failed: scripted_failure {failed:,}." in sentences[2]


def test_a_run_makes_its_report_and_the_command_makes_the_same_bytes(
    synthia: Command, home: Path, tmp_path: Path
) -> None:
    made_by_run = (home / "out" / "report.html").read_bytes()
    for name in ("a.html", "b.html"):
        done = synthia("report", home / "out", "-o", name)
        assert (done.returncode, done.stdout.strip()) == (0, name)
        assert (tmp_path / name).read_bytes() == made_by_run
    # Wherever it lies, and whoever wrote the file times.
    shutil.copytree(home / "out", tmp_path / "elsewhere" / "out")
    assert render_page(read_report(tmp_path / "elsewhere" / "out")).encode() == made_by_run


def test_what_a_user_has_set_for_matplotlib_changes_no_page(
    synthia: Command, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: path\n")
    done = synthia("report", home / "out", "-o", "a.html", MPLCONFIGDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.html").read_bytes() == (home / "out" / "report.html").read_bytes()


def test_the_page_needs_nothing_but_itself(home: Path) -> None:
    page = (home / "out" / "report.html").read_text()
    assert "<script" not in page
    for address in ("http://", "https://", "//cdn", "@import", "url(http"):
        # matplotlib's namespaces are names, not addresses that anybody fetches.
        assert address not in page.replace("http://www.w3.org/", "")
    # Two histograms; and where the machine was slow enough for it, speed and busy engines over time.
    assert page.count("<svg") in (2, 3)


def test_the_report_is_no_part_of_the_dataset(synthia: Command, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(home / "out", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert "report.html" not in json.dumps(manifest)
    report = RunDir(out).report
    for change in (
        lambda: report.write_text("altered"),
        report.unlink,
        lambda: temporary_path(report).touch(),
    ):
        change()
        done = synthia("verify", "out", "-q")
        assert done.returncode == 0, done.stdout
    before = read_bytes_of_data(out)
    # A kill in the midst of the report leaves its temporary file: the next run takes it away.
    again = synthia("run", home / "q.jsonl", *SCRIPTED, "-s", "synthia", "-s", "none", "-o", "out",
                    "--max-tokens", "12", "--set", "engine.fail_every=9")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert not temporary_path(report).exists()
    assert read_bytes_of_data(out) == before


def test_a_report_that_cannot_be_made_is_said_and_fails_no_run(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(5)])
    (tmp_path / "out" / ".synthia").mkdir(parents=True)
    (tmp_path / "out" / "report.html").mkdir()
    done = synthia("run", source, *SCRIPTED, "-o", "out", SYNTHIA_BATCH_REPORT="true")
    assert done.returncode == 0, done.stderr
    assert "could not write the report" in done.stderr
    assert "the dataset is complete; try `synthia-batch report out`" in done.stderr
    assert synthia("verify", "out", "-q").returncode == 0


def test_a_retry_makes_the_report_anew(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(20)])
    repaired = tmp_path / "repaired"
    settings = ("--set", "engine.fail_every=4", "--set", f"engine.fail_while_missing={repaired}")
    run = ("run", source, *SCRIPTED, *settings, "-o", "out")
    assert synthia(*run, SYNTHIA_BATCH_REPORT="true").returncode == 0
    page = tmp_path / "out" / "report.html"
    assert "15 of 20 samples are finished, 5 failed" in page.read_text()
    repaired.touch()
    assert synthia("retry", "out", "-q", SYNTHIA_BATCH_REPORT="true").returncode == 0
    assert "all 20 samples are finished" in page.read_text()


def test_reports_are_left_out_where_nobody_wants_them(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "What is 1?"}])
    done = synthia("run", source, *SCRIPTED, "-o", "out", "--set", "report=false")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "report.html").exists()
    # That is no identity: the same directory, and complete.
    assert "already complete" in synthia("run", source, *SCRIPTED, "-o", "out", "--set", "report=true").stderr


def test_a_run_does_not_load_matplotlib_before_its_end() -> None:
    probe = (
        "import sys, synthia_batch.runner.run, synthia_batch.runner.retry\n"
        "sys.exit(f\"loaded {sys.modules['matplotlib']}\" if 'matplotlib' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_running_and_an_interrupted_run_are_reported_from_their_journals(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(1500)])
    # Its one engine hangs in the second shard, so that the run goes on for as long as it is looked at.
    settings = ("engine.fail_every=50", "engine.hang_on=What is 1400?", "pool.workers=1")
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = command_of("run", source, *SCRIPTED, *flags, "-s", "synthia", "-s", "none", "-o", "out")
    journal = tmp_path / "out/.synthia/journal/shard-00001.wal"
    victim = subprocess.Popen(command, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL)
    try:
        # Into the second shard: one is published then, the other has a journal.
        part = tmp_path / "out/data/train-00000-of-00002.parquet"
        while not part.exists() or journal.stat().st_size < 10_000:
            assert victim.poll() is None, "the run ended before it could be looked at"
            time.sleep(0.02)
        running = synthia("report", "out", "-o", "running.html")
        assert running.returncode == 0, running.stderr
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert "Still running: " in (tmp_path / "running.html").read_text()
    values = json.loads(synthia("report", "out", "--json").stdout)
    status = json.loads(synthia("status", "out", "--json").stdout)
    assert values["state"] == "interrupted"
    assert 2000 < values["finished"] == status["finished"] < 3000
    assert values["failed"] == status["failed"]
    assert set(values["systems"]) == {"synthia", "none"}
    assert values["attempts"][-1]["end"] == "killed, or ended by an error"
    assert synthia("report", "out").returncode == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not complete: " in page
    assert "Checksums appear here once the run is complete." in page


def test_samples_of_a_journal_are_shown_without_their_prompts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(60)])
    slow = ("--set", "engine.latency_ms=300", "--set", "engine.max_num_seqs=2")
    command = command_of("run", "q.jsonl", *SCRIPTED, *slow, "-o", "out")
    victim = subprocess.Popen(command, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL)
    journal = tmp_path / "out/.synthia/journal/shard-00000.wal"
    while not journal.exists() or journal.stat().st_size < 1000:
        assert victim.poll() is None
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    found = read_report(tmp_path / "out")
    samples = found.examples.kinds["random"]
    assert samples
    assert all(sample.turns is None for sample in samples)
    place = re.compile(r"row [1-5]?\d of \.synthia/journal/shard-00000\.wal")
    assert all(place.match(sample.place) for sample in samples)
    assert "The prompt is in the input" in render_page(found)


@pytest.mark.parametrize(
    ("rows", "flags", "expected"),
    [
        (1, (), "Complete: all 1 samples are finished."),
        (3, ("--set", "engine.fail_every=1"), "every one of the 3 samples failed"),
    ],
    ids=["one sample", "nothing but failures"],
)
def test_runs_at_the_edges_have_a_page(
    synthia: Command, tmp_path: Path, rows: int, flags: tuple[str, ...], expected: str
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(rows)])
    synthia("run", source, *SCRIPTED, *flags, "-o", "out", SYNTHIA_BATCH_REPORT="true")
    assert expected in (tmp_path / "out" / "report.html").read_text()
    assert json.loads(synthia("report", "out", "--json").stdout)["state"] == "complete"


def test_conversations_are_counted_and_shown_whole(synthia: Command, tmp_path: Path) -> None:
    done = synthia("run", ROOT / "jobs" / "conversations.yaml", *SCRIPTED, "--max-tokens", "9", "-o", "out")
    assert done.returncode == 0, done.stderr
    found = read_report(tmp_path / "out")
    rows = read_data(tmp_path / "out")
    assert found.head.plays_turns
    texts = [sentence.text for sentence in assess(found)]
    cut = sum(row["finish_reason"] == "length" for row in rows)
    assert f"{cut} of 4 conversations ({format_share(cut, 4)}) had an answer cut off at 9 tokens" in texts[1]
    shown = {sample.title: sample for sample in found.examples.kinds["random"]}
    assert len(shown) == 4
    for row in rows:
        (sample,) = [one for title, one in shown.items() if title.startswith(f"row {row['row_index']},")]
        assert sample.turns is not None
        assert len(sample.turns) + sample.hidden_turns == len(row["messages"]) - 1
        assert sample.answer.text == row["response"]
    assert "tokens of the answers of a conversation" in render_page(found)


def test_a_row_stands_side_by_side_under_each_system_message(home: Path, found: Report) -> None:
    by_row: dict[int, dict[str, str]] = {}
    for row in read_data(home / "out"):
        by_row.setdefault(row["row_index"], {})[row["system"]] = row["response"]
    assert len(found.examples.side_by_side) == 3
    for shown in found.examples.side_by_side:
        number = int(shown.title.removeprefix("row "))
        assert {sample.system: sample.answer.text for sample in shown.samples} == by_row[number]
        assert shown.question is not None
        assert shown.question.text == f"What is {number % 1100} squared?"


def test_the_longest_and_the_cut_off_are_what_they_are_called(home: Path, found: Report) -> None:
    longest = found.examples.kinds["longest"]
    assert [sample.completion_tokens for sample in longest] == [12] * 8
    assert {sample.finish_reason for sample in found.examples.kinds["truncated"]} == {"length"}
    rows = {
        f"{row['row_index']} {row['sample_index']} {row['system']}": row for row in read_data(home / "out")
    }
    for sample in found.examples.kinds["random"]:
        row, index = sample.title.split(", id")[0].removeprefix("row ").split(", sample ")
        assert rows[f"{row} {index} {sample.system}"]["response"] == sample.answer.text


def test_a_sample_shows_its_question_and_its_tokens_above_the_answer(found: Report) -> None:
    page, sample = render_page(found), found.examples.kinds["random"][0]
    article = page[page.index(f"<b>{sample.title}</b>") :].partition("</article>")[0]
    above, _, _ = article.partition("<details>")
    assert sample.turns is not None
    assert f">{sample.turns[-1].content.text}</div>" in above
    assert f"{sample.prompt_tokens} in, {sample.completion_tokens} out" in above


def test_failures_have_their_line_in_the_input(found: Report) -> None:
    (failures,) = found.examples.failures.values()
    assert [failure.source for failure in failures] == ["q.jsonl:1", "q.jsonl:5", "q.jsonl:10"]
    assert failures[0].message.text == "failed as scripted"
    assert failures[0].turns is not None
    assert failures[0].turns[-1].content.text == "What is 0 squared?"


def test_finished_samples_have_their_line_in_the_input(found: Report) -> None:
    shown = [*found.examples.side_by_side, *found.examples.flagged, *found.examples.kinds["random"]]
    for one in shown:
        row = int(re.findall(r"^row (\d+)", one.title)[0])
        assert one.source == f"q.jsonl:{row + 1}"
    assert f"<code>{shown[-1].source}</code>" in render_page(found)


def test_without_its_input_a_run_has_a_page_without_lines(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    job = tmp_path / "out/.synthia/job.json"
    for damage in (job.unlink, lambda: job.write_text("altered")):
        damage()
        moved = read_report(tmp_path / "out")
        assert {sample.source for sample in moved.examples.kinds["random"]} == {""}
        (failures,) = moved.examples.failures.values()
        assert failures[0].source == "q.jsonl:1", "failed/ has it"


def list_led(report: Report, page: str) -> list[str]:
    """Return the places that the verdict leads to, each of which is in the page once."""
    led = [sentence.samples for sentence in assess(report) if sentence.samples]
    for place in led:
        assert f'<a href="#{place}">samples</a>' in page
        assert page.count(f'id="{place}"') == 1
    return led


def test_every_sentence_about_samples_leads_to_them(found: Report) -> None:
    assert list_led(found, render_page(found)) == ["panel-truncated", "panel-failed"]


def test_beyond_a_limit_the_text_of_every_nth_shard_is_read_and_the_page_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWERS", 1300)
    found = read_report(home / "out")
    assert found.texts.read < found.texts.finished
    assert found.texts.read == pq.read_metadata(home / "out/data/train-00001-of-00002.parquet").num_rows
    assert (
        f"The text of {found.texts.read:,} of the {found.texts.finished:,} answers was read"
        in render_page(found)
    )


def test_every_hostile_text_is_within_the_size_of_a_page(tmp_path: Path) -> None:
    out = make_hostile_run(tmp_path)
    add_history(out)
    report = read_report(out)
    page = render_page(report)
    assert len(page.encode()) < 2_000_000
    assert {"flagged-empty", "flagged-repetitive"} <= set(list_led(report, page))
    for text in TEXTS[:6]:
        assert text not in page, "it must be escaped"


def test_what_is_no_run_and_what_is_no_place_is_refused(synthia: Command, home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = synthia("report", "empty")
    assert (done.returncode, "not a run directory" in done.stderr) == (2, True)
    done = synthia("report", home / "out", "-o", "no/such/folder.html")
    assert (done.returncode, "expected a file name in an existing directory" in done.stderr) == (2, True)


def test_a_damaged_part_is_named(synthia: Command, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    part = tmp_path / "out/data/train-00000-of-00002.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    done = synthia("report", "out")
    assert done.returncode == 4
    assert "train-00000-of-00002.parquet: cannot be read as a part" in done.stderr


def test_rows_are_found_by_their_position(home: Path) -> None:
    path = home / "out/data/train-00000-of-00002.parquet"
    table = pq.read_table(path)
    rows = read_rows(path, [1700, 0, 255, 256, 0], ["row_index", "response"])
    assert rows == table.select(["row_index", "response"]).take([0, 255, 256, 1700]).to_pylist()
    numbers = read_numbers(path)
    assert [numbers.systems[place] for place in numbers.system.tolist()] == table["system"].to_pylist()
    assert len(set(hash_samples(numbers).tolist())) == table.num_rows


def test_selections_do_not_depend_on_the_order_in_which_they_are_offered() -> None:
    keys = np.array([5, 3, 9, 1], dtype=np.uint64)
    places = np.arange(4, dtype=np.int64)
    one, other = SampleSelection(limit=3), SampleSelection(limit=3)
    one.offer(0, keys, places)
    one.offer(1, keys + np.uint64(1), places)
    other.offer(1, keys + np.uint64(1), places)
    other.offer(0, keys, places)
    assert one.chosen == other.chosen
    assert one.by_shard == {0: [1, 3], 1: [3]}


def test_shards_are_taken_evenly_and_one_at_least() -> None:
    assert choose_stride(1000, 0, max_samples=200, max_bytes=10) == 5
    assert choose_stride(100, 45, max_samples=200, max_bytes=10) == 5
    assert list(list_strided(5, 20)) == [2, 7, 12, 17]
    assert list(list_strided(9, 2)) == [1]
    assert list(list_strided(1, 0)) == []


def test_quantiles_are_exact_at_every_share() -> None:
    generator = np.random.default_rng(7)
    values = generator.integers(0, 50, 999)
    lengths = LengthHistogram()
    for part in np.array_split(values, 7):
        lengths.add(part)
    for share in (0.001, 0.05, 0.5, 0.501, 0.95, 1.0):
        assert lengths.find_quantile(share) == find_rank(values.tolist(), share)
    assert (lengths.tokens, lengths.longest, lengths.samples) == (values.sum(), values.max(), 999)
    assert LengthHistogram().to_dict()["median"] == 0


@pytest.mark.parametrize("lengths", [[0], [7], [1, 1000], list(range(400)), [5, 100_000], [3] * 9])
def test_bins_hold_every_sample_once_and_are_few(lengths: list[int]) -> None:
    bins = make_bins(np.bincount(lengths))
    assert sum(bins.counts) == len(lengths)
    assert len(bins.counts) <= 40
    assert len(bins.edges) == len(bins.counts) + 1
    assert bins.edges[0] <= min(lengths)
    assert max(lengths) < bins.edges[-1]
    assert (bins.limit, bins.at_limit, bins.last_within) == (None, 0, None)


@pytest.mark.parametrize("lengths", [[0, 7], [7], [1, 1000, 1000], list(range(513)) * 2, [3] * 9, [40, 512]])
def test_a_bin_ends_at_the_limit_that_answers_reach(lengths: list[int]) -> None:
    limit = max(lengths)
    bins = make_bins(np.bincount(lengths), limit)
    assert bins.last_within is not None
    assert bins.edges[bins.last_within + 1] == limit + 1
    assert bins.at_limit == lengths.count(limit) <= bins.counts[bins.last_within]
    assert (sum(bins.counts), bins.edges[0]) == (len(lengths), max(0, bins.edges[0]))
    unreached = make_bins(np.bincount(lengths), limit + 1)
    assert (unreached.at_limit, unreached.last_within) == (0, None)


def test_the_time_between_attempts_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".synthia").mkdir()
    add_history(tmp_path)
    events = [json.loads(line) for line in (tmp_path / ".synthia/events.jsonl").read_text().splitlines()]
    whole, cut = read_history(events), read_history(events, cuts_pauses=True)
    assert whole.resumes == [2400.0]
    assert cut.resumes == [180.0]
    assert cut.losses == [120.0]
    assert [(one.start, one.end) for one in cut.attempts[1]] == [(240.0, 300.0)]
    assert cut.loadings == [Loading(start=0.0, end=0.0), Loading(start=180.0, end=240.0)]
    assert (whole.end, cut.end) == (2520.0, 300.0)
    with default_settings():
        plot = render_svg(draw_speed(cut))
    for text in ("tokens/s", "busy engines", "loading", "worker lost and restarted", "run resumed"):
        assert plot.count(f">{text}</text>") == 1, "one axis of time, and one legend"
    first, second = list_attempts(events, is_running=False)
    assert (first.made, first.workers_lost, first.end) == (60, 1, "killed, or ended by an error")
    assert second.end == f"drained on {TEXTS[4]}"
    assert list_attempts(events[:3], is_running=True)[0].end == "still running"


def test_coarse_stretches_cover_the_same_time_with_the_same_tokens() -> None:
    fine = [Interval(start=n, end=n + 1, tokens_per_second=float(n), busy_engines=n / 10) for n in range(23)]
    coarse = coarsen(fine, 5)
    assert (coarse[0].start, coarse[-1].end) == (0, 23)
    assert all(one.end == two.start for one, two in pairwise(coarse))
    assert all(one.end - one.start >= 5 for one in coarse)
    assert sum(one.tokens_per_second * (one.end - one.start) for one in coarse) == sum(range(23))
    assert coarsen([], 5) == []


def test_untrusted_text_is_made_visible_and_cut_by_what_it_costs() -> None:
    assert make_visible("a\x00\x1b\x7f\u202eb\ud800\r\nc") == "a\u2400\u241b\u2421[U+202E]b\ufffd\nc"
    assert (
        make_visible("tab\tline\n \U0001f469\u200d\U0001f467 שלום")
        == "tab\tline\n \U0001f469\u200d\U0001f467 שלום"
    )
    whole = escape_text("<b>", 100)
    assert (whole.text, whole.is_cut) == ("<b>", False)
    cut = escape_text("<" * 1000, 100)
    assert (cut.kept, cut.characters, cut.is_cut) == (25, 1000, True)
    assert escape_text("\U0001f600" * 1000, 100).kept == 25
    assert escape_text("", 100).text == ""
    escape_text("\ud800" * 10, 5)


def test_shares_are_never_rounded_to_all_or_none() -> None:
    shares = {(0, 9): "0%", (9, 9): "100%", (999, 1000): "99%", (312, 1000): "31%", (1, 300): "0.3%"}
    assert {pair: format_share(*pair) for pair in shares} == shares
    assert format_share(1, 10_000) == "under 0.1%"
    assert format_share(0, 0) == "0%"


def test_answers_cut_off_by_the_context_and_by_the_limit_are_distinguished(
    found: Report,
) -> None:
    counts = replace(found.counts, groups={})
    part = found.counts.groups["none"]
    group = replace(part, cut_early=part.truncated - 2)
    counts.groups["none"] = group
    texts = [one.text for one in assess(replace(found, counts=counts))]
    assert texts[1].startswith(f"2 of {group.finished:,} answers")
    assert f"{group.truncated - 2:,} of {group.finished:,} answers" in texts[2]
    assert "because the context of 8,192 tokens was full" in texts[2]
