"""verify finds damage with file and offset; verify --repair removes exactly that."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import command_of, read_bytes_of_data, write_jsonl
from inside import Answer, Killed, call, dying_at, snapshot

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.console import Display
from synthia_batch.core.types import Shard
from synthia_batch.errors import IntegrityError
from synthia_batch.job.identity import OUTPUT_FORMAT
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.storage.journal.writer import write_journal
from synthia_batch.storage.lock import read_owner
from synthia_batch.storage.manifest import FORMAT_VERSION, read_manifest, write_manifest
from synthia_batch.storage.parts.pages import find_page_damage
from synthia_batch.storage.parts.reader import Places, SampleGrid, number_failed, number_made, read_made
from synthia_batch.storage.parts.row_digest import digest_rows

ROWS = 1300
RUN = (
    "run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-q", "-o", "out",
    "--set", "engine.fail_every=9", "-s", "synthia", "-s", "none",
)  # fmt: skip
DATA = "data/train-00000-of-00002.parquet"
LEDGER = ".synthia/intents.wal"
TORN = "data/.train-00000-of-00002.parquet.tmp"
OWNER = ".synthia/owner.json"
OCCURRENCES = ".synthia/occurrences.bin"
JOB = ".synthia/job.json"
PLAN = ".synthia/plan.json"
CANARY = ".synthia/canary.json"
FAILED = "failed/failed-00001-of-00002.parquet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an input and, under "out", the complete run of it. Copied, never changed."""

    home = tmp_path_factory.mktemp("finished")
    write_jsonl(home / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    subprocess.run(command_of(*RUN), cwd=home, check=True, capture_output=True)
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    monkeypatch.chdir(home)
    return home


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def leave_journal(out: Path) -> None:
    """Put shard 1 where a killed publication would have left it: nearly journaled, not published."""
    facts = read_facts(out)
    shard = facts.shards[1]
    made = list(read_made(facts.run_dir.data_part(shard), shard, facts.grid).values())
    writer = replace(facts.writer, epoch=2)
    write_journal(facts.run_dir.journal(shard), shard, writer, made[:100])
    for path in (facts.run_dir.manifest, facts.run_dir.readme):
        path.unlink()


def leave_damaged_journal(out: Path) -> None:
    leave_journal(out)
    flip(out / ".synthia/journal/shard-00001.wal", 2000)


def leave_published_journal(out: Path) -> None:
    facts = read_facts(out)
    write_journal(facts.run_dir.journal(facts.shards[0]), facts.shards[0], replace(facts.writer, epoch=1), [])


def claim_more(out: Path) -> None:
    manifest = read_manifest(out / "manifest.json")
    assert manifest is not None
    write_manifest(out / "manifest.json", replace(manifest, finished=manifest.finished + 1))


def forget_a_part(out: Path) -> None:
    frames = (out / LEDGER).read_bytes().splitlines(keepends=True)
    (out / LEDGER).write_bytes(b"".join(frames[:-1]))


Harm = Callable[[Path], object]
HARMS: dict[str, tuple[Harm, str]] = {
    "a flipped bit in a page": (lambda out: flip(out / DATA, 9000), f"{DATA}: byte "),
    "a flipped bit in failed/": (lambda out: flip(out / FAILED, 600), f"{FAILED}: byte "),
    "a flipped bit in the footer": (lambda out: flip(out / DATA, -100), f"{DATA}: "),
    "a damaged magic": (lambda out: flip(out / DATA, -1), f"{DATA}: byte "),
    "a part cut short": (lambda out: (out / DATA).write_bytes((out / DATA).read_bytes()[:5000]), f"{DATA}: "),
    "an empty part": (lambda out: (out / DATA).write_bytes(b""), f"{DATA}: "),
    "a missing data part": (lambda out: (out / DATA).unlink(), f"{DATA}: was published and is missing"),
    "a missing failed part": (lambda out: (out / FAILED).unlink(), f"{FAILED}: was published and is missing"),
    "a part that the ledger lacks": (forget_a_part, "is not of this run"),
    "a flipped bit in the ledger": (lambda out: flip(out / LEDGER, 200), f"{LEDGER}: byte "),
    "a flipped bit in the ledger's header": (lambda out: flip(out / LEDGER, 3), f"{LEDGER}: byte 0: "),
    "an altered manifest": (lambda out: flip(out / "manifest.json", 60), "manifest.json: "),
    "a manifest that claims more": (claim_more, "manifest.json: finished + failed is 2601, must be 2600"),
    "a missing card": (lambda out: (out / "README.md").unlink(), "README.md: the dataset card is missing"),
    "a file never finished": (lambda out: (out / TORN).write_bytes(b"PAR1"), f"{TORN}: "),
    "a leftover journal": (leave_published_journal, ".synthia/journal/shard-00000.wal: "),
    "an altered record of the epoch": (lambda out: flip(out / OWNER, 5), f"{OWNER}: was altered"),
    "a missing record of the epoch": (lambda out: (out / OWNER).unlink(), f"{OWNER}: is missing"),
    "an altered record of repeated rows": (lambda out: flip(out / OCCURRENCES, 5), f"{OCCURRENCES}: "),
    "an altered record of the job": (lambda out: flip(out / JOB, 5), f"{JOB}: "),
    "a damaged journal": (leave_damaged_journal, ".synthia/journal/shard-00001.wal: byte "),
}  # fmt: skip


def verify(capsys: Any, *flags: str) -> Answer:
    return call(capsys, "verify", "out", "-q", *flags)


def test_a_complete_run_is_clean_and_its_speed_is_reported(home: Path, capsys: Any) -> None:
    before = snapshot(home)
    answer = verify(capsys)
    assert answer.code == 0, answer
    assert "out: no findings: complete, 2 of 2 shards published, 2600 samples" in answer.out
    assert "MB/s)" in answer.out
    told = json.loads(verify(capsys, "--json").out)
    assert (told["state"], told["findings"], told["samples"]) == ("complete", [], 2600)
    assert verify(capsys, "--repair").out == "out: nothing to repair\n"
    assert snapshot(home) == before


@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_found_repaired_and_regenerated_byte_for_byte(
    home: Path, finished: Path, capsys: Any, harm: str
) -> None:
    do_harm, words = HARMS[harm]
    do_harm(home / "out")
    before = snapshot(home)
    found = verify(capsys)
    assert found.code == 4, found
    assert words in found.out
    assert json.loads(verify(capsys, "--json").out)["findings"]
    assert snapshot(home) == before, "a check must only read"
    repaired = verify(capsys, "--repair")
    assert repaired.code == 0, repaired
    assert verify(capsys).code == 0, verify(capsys)
    again = call(capsys, *RUN)
    assert again.code == 0, again
    assert read_bytes_of_data(home / "out") == read_bytes_of_data(finished / "out")
    assert verify(capsys).code == 0


def test_an_unfinished_run_is_clean(home: Path, capsys: Any) -> None:
    leave_journal(home / "out")
    (home / "out/data/.train-00001-of-00002.parquet.tmp").write_bytes(b"half")
    answer = verify(capsys)
    assert answer.code == 0, answer
    assert "1 file left over from a crash; the next run cleans up" in answer.out
    assert "unfinished, 1 of 2 shards published" in answer.out


def test_a_file_of_nobody_is_named_and_left_alone(home: Path, capsys: Any) -> None:
    (home / "out/data/train-extra.parquet").write_bytes(b"mine")
    assert verify(capsys, "--repair").code == 4
    answer = verify(capsys)
    assert (answer.code, answer.out.splitlines()[0]) == (
        4, "data/train-extra.parquet: is not a file of this run: move it out of the run directory",
    )  # fmt: skip
    assert (home / "out/data/train-extra.parquet").read_bytes() == b"mine"


def test_comparing_what_is_published_shows_how_far_it_is(
    home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_journal(home / "out")
    for command in (RUN, ("retry", "out", "-q")):
        told: list[tuple[int, int]] = []
        monkeypatch.setattr(Display, "show_check", lambda self, *progress, told=told: told.append(progress))
        assert call(capsys, *command).code == 0
        assert told
        assert told[-1][0] == told[-1][1] > 0


def leave_nothing(out: Path) -> None:
    """Take the run back to where its first worker was ready and no sample had ended."""
    for path in (*out.glob("*/*.parquet"), out / LEDGER, out / "manifest.json", out / "README.md"):
        path.unlink()


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_damaged_plan_is_rewritten_by_the_original_job(
    home: Path, finished: Path, capsys: Any, is_complete: bool
) -> None:
    out = home / "out"
    if not is_complete:
        leave_journal(out)
    flip(out / PLAN, 5)
    before = snapshot(home)
    assert f"{PLAN}: " in verify(capsys).out
    refused = call(capsys, *RUN)
    assert (refused.code, "verify DIR" in refused.err) == (4, True), refused
    assert snapshot(home) == before
    assert verify(capsys, "--repair").code == 0
    without_plan = snapshot(home)
    assert before.keys() - without_plan.keys() == {f"out/{PLAN}"}
    (home / "q.jsonl").rename(home / "other.jsonl")
    other = call(capsys, "run", "other.jsonl", *RUN[2:])
    (home / "other.jsonl").rename(home / "q.jsonl")
    assert (other.code, "belongs to another plan" in other.err) == (4, True), other
    assert "use the job as first specified" in other.err
    assert snapshot(home) == without_plan
    assert call(capsys, *RUN).code == 0
    assert (out / PLAN).read_bytes() == (finished / "out" / PLAN).read_bytes()
    assert read_bytes_of_data(out) == read_bytes_of_data(finished / "out")
    assert verify(capsys).code == 0


def test_a_damaged_record_of_repeated_rows_is_made_from_the_input(
    home: Path, finished: Path, capsys: Any
) -> None:
    leave_journal(home / "out")
    flip(home / "out" / OCCURRENCES, 5)
    before = snapshot(home)
    refused = call(capsys, *RUN)
    assert (refused.code, "--repair" in refused.err) == (4, True), refused
    assert snapshot(home) == before
    assert verify(capsys, "--repair").code == 0
    assert not (home / "out" / OCCURRENCES).exists()
    assert call(capsys, *RUN).code == 0
    assert (home / "out" / OCCURRENCES).read_bytes() == (finished / "out" / OCCURRENCES).read_bytes()
    assert read_bytes_of_data(home / "out") == read_bytes_of_data(finished / "out")


def test_a_lost_epoch_is_found_in_what_was_written_under_it(home: Path, capsys: Any) -> None:
    out = home / "out"
    leave_journal(out)  # of epoch 2
    (out / OWNER).unlink()
    before = snapshot(home)
    refused = call(capsys, *RUN)
    assert (refused.code, "owner.json is missing" in refused.err) == (4, True), refused
    assert {**snapshot(home), "out/.synthia/lock": b""} == {**before, "out/.synthia/lock": b""}
    assert "rewritten, with epoch 3" in verify(capsys, "--repair").out
    owner = read_owner(out / OWNER)
    assert owner is not None
    assert owner.epoch == 3


def test_what_the_engines_must_answer_is_not_dropped_where_there_are_samples(home: Path, capsys: Any) -> None:
    flip(home / "out" / CANARY, 5)
    before = read_bytes_of_data(home / "out")
    answer = verify(capsys)
    assert f"{CANARY}: " in answer.out
    assert "remove it, if you know that the engines are the same" in answer.out
    assert verify(capsys, "--repair").code == 4
    assert (home / "out" / CANARY).exists()
    assert read_bytes_of_data(home / "out") == before
    (home / "out" / CANARY).unlink()
    assert verify(capsys).code == 0


def test_what_the_engines_must_answer_is_asked_anew_where_there_are_none(
    home: Path, finished: Path, capsys: Any
) -> None:
    leave_nothing(home / "out")
    flip(home / "out" / CANARY, 5)
    refused = call(capsys, *RUN)
    assert (refused.code, "canary.json" in refused.err) == (4, True), refused
    assert verify(capsys, "--repair").code == 0
    assert call(capsys, *RUN).code == 0
    assert (home / "out" / CANARY).read_bytes() == (finished / "out" / CANARY).read_bytes()
    assert read_bytes_of_data(home / "out") == read_bytes_of_data(finished / "out")


def test_every_flipped_byte_of_a_part_is_found_at_or_before_its_place(home: Path, capsys: Any) -> None:
    path = home / "out" / DATA
    whole = path.read_bytes()
    for offset in range(0, len(whole), len(whole) // 60):
        flip(path, offset, bit=offset % 8)
        damage = find_page_damage(path)
        # Headers and the footer carry no checksum of their own: the SHA-256 speaks for those.
        assert damage is None or damage.offset <= offset
        assert f"{DATA}: " in verify(capsys).out
        path.write_bytes(whole)
    assert find_page_damage(path) is None


def test_a_rewritten_file_is_distinguished_from_one_with_other_rows(home: Path, capsys: Any) -> None:
    path = home / "out/data/train-00000-of-00002.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, compression="snappy")
    answer = call(capsys, "verify", "out", "-q")
    assert answer.code == 4
    assert "its rows still match the published digest" in answer.out
    pq.write_table(table.slice(1), path)
    answer = call(capsys, "verify", "out", "-q")
    assert answer.code == 4
    assert "its rows still match" not in answer.out


def test_rows_are_decoded_where_that_is_asked_for(home: Path, capsys: Any) -> None:
    assert call(capsys, "verify", "out", "-q", "--rows").code == 0
    parts = json.loads((home / "out/manifest.json").read_text())["parts"]
    for part in parts:
        assert part["rows_digest"] == digest_rows(pq.read_table(home / "out" / part["path"]))


def test_only_the_samples_of_a_damaged_part_are_regenerated(home: Path, capsys: Any) -> None:
    (home / "out" / FAILED).unlink()
    assert "shard 1: 66 of 600 samples will be regenerated" in verify(capsys, "--repair").out
    made = call(capsys, *RUN, "--json")
    assert json.loads(made.out)["made_now"] == 66


def age_plan(out: Path) -> None:
    """Make it a run that a version with fewer output columns began."""
    plan = read_checksummed(out / PLAN)
    assert plan is not None
    plan["identity"]["output_format"] = OUTPUT_FORMAT - 1
    (out / PLAN).write_bytes(encode_checksummed(plan))
    for path in sorted((out / "data").glob("*")):
        pq.write_table(pq.read_table(path).drop_columns(["finish_reason"]), path)


def age_manifest(out: Path) -> None:
    manifest = read_checksummed(out / "manifest.json")
    assert manifest is not None
    manifest["format_version"] = FORMAT_VERSION - 1
    (out / "manifest.json").write_bytes(encode_checksummed(manifest))


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (age_plan, f"expected output format {OUTPUT_FORMAT}, got {OUTPUT_FORMAT - 1}"),
        (age_manifest, f"expected manifest format {FORMAT_VERSION}, got {FORMAT_VERSION - 1}"),
    ],
)
def test_a_run_of_another_format_is_refused_and_nothing_of_it_is_touched(
    home: Path, capsys: Any, age: Callable[[Path], None], words: str
) -> None:
    age(home / "out")
    before = snapshot(home)
    for arguments in ((), ("--repair",), ("--repair", "--json")):
        refused = verify(capsys, *arguments)
        assert refused.code == 2, refused
        assert words in refused.err
        assert "use the version of synthia-batch that began this run" in refused.err
        assert snapshot(home) == before


def test_a_repair_killed_anywhere_can_be_repeated(home: Path, finished: Path, capsys: Any) -> None:
    out = home / "out"
    flip(out / DATA, 9000)
    (out / FAILED).unlink()
    flip(out / LEDGER, 200)
    shutil.copytree(out, home / "harmed")
    for number in range(1, 200):
        shutil.rmtree(out)
        shutil.copytree(home / "harmed", out)
        try:
            with dying_at(number):
                verify(capsys, "--repair")
        except Killed:
            assert_manifest_is_true(out)
            assert verify(capsys, "--repair").code == 0
            if number % 4 == 0:
                assert call(capsys, *RUN).code == 0
                assert read_bytes_of_data(out) == read_bytes_of_data(finished / "out")
            assert verify(capsys).code == 0
        else:
            assert number > 20
            return
    pytest.fail("the repair has no end")


def assert_manifest_is_true(out: Path) -> None:
    """The harm was done outside; the repair itself must not take away what the manifest claims."""
    manifest = read_manifest(out / "manifest.json")
    if manifest is not None:
        there = {str(path.relative_to(out)) for path in out.glob("*/*.parquet")}
        assert {part.path for part in manifest.parts} - there <= {FAILED}


GRID = SampleGrid(systems=("a", "b"), num_samples=2, own_system=None)
SHARD = Shard(number=0, count=1, first_row=0, stop_row=3, first=0, stop=12)


def place(ordinals: list[int], *, with_system: bool = True) -> Places:
    numbers = np.array(ordinals, dtype=np.int64)
    return Places(
        path=Path("part"),
        row=numbers // 4,
        index=numbers % 2,
        system=numbers % 4 // 2 if with_system else None,
    )


def test_rows_are_numbered_as_the_plan_orders_them() -> None:
    made = number_made(SHARD, GRID, place([0, 1, 3, 6, 11]))
    assert made.tolist() == [0, 1, 3, 6, 11]
    failed = number_failed(SHARD, GRID, place([2, 4, 5, 7, 8, 9, 10], with_system=False), made)
    assert failed.tolist() == [2, 4, 5, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("ordinals", "words"),
    [
        ([0, 2, 1], r"row 2 .* is out of order"),
        ([0, 1, 1], r"row 2 .* is there twice"),
        ([0, 12], r"row 1 .* is no sample of shard 0"),
        ([-4], r"row 0 .* is no sample of shard 0"),
    ],
)
def test_rows_in_the_wrong_place_are_refused(ordinals: list[int], words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        number_made(SHARD, GRID, place(ordinals))


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        ([5, 6, 7, 8, 9, 10], r"sample 11 \(row 2, system 'b', sample 1\) is neither here nor in data"),
        ([5, 6, 7, 8, 9, 10, 11, 11], r"is in data/ as well, or twice"),
        ([6, 5, 7, 8, 9, 10, 11], r"row 0 .* stands where sample 5 "),
    ],
)
def test_failed_rows_must_be_those_that_data_lacks(failed: list[int], words: str) -> None:
    made = np.arange(5, dtype=np.int64)
    with pytest.raises(IntegrityError, match=words):
        number_failed(SHARD, GRID, place(failed, with_system=False), made)


def test_an_unknown_system_is_refused() -> None:
    places = replace(place([0, 1]), system=np.array([0, -1], dtype=np.int64))
    with pytest.raises(IntegrityError, match=r"row 1 .* is no sample"):
        number_made(SHARD, GRID, places)
