"""Samples that share words with a benchmark: which, and why; the benchmark's content is their identity."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import call

from synthia_batch.errors import IdentityMismatch, UsageError
from synthia_batch.inputs.records.expressions import SampleNames
from synthia_batch.job.select import Select
from synthia_batch.results.select.benchmark import split_words
from synthia_batch.results.select.decide import Selector
from synthia_batch.results.select.verdicts import Decisions, Verdict
from synthia_batch.runner.selection import select_samples
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan

ENGINE = ("--engine", "scripted", "--pool", "local", "-q")
LONG = "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins."
NAMES = SampleNames(job="q", runs={"q": ("response",)}, plain=())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """A complete run named `q`, of one sample for each text in its column `said`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [
        f"Well: JANET’S ducks lay 16 eggs per day; she eats three for breakfast. {LONG[80:]}",
        "Nobody has ducks.",
        "Two, plus two!",
        "What is two plus two",
        "",
    ]
    write_jsonl(
        Path("q.jsonl"), [{"id": f"r{n}", "prompt": "Say", "said": one} for n, one in enumerate(texts)]
    )
    write_jsonl(Path("bench.jsonl"), [{"n": 1}, {"q": "two plus two"}, {"q": LONG}, {"q": None}])
    options = ("--id-column", "id", "--keep-columns", "said", "--samples-per-file", "2", "-o", "texts")
    assert call(capsys, "run", "q.jsonl", *ENGINE, *options).code == 0
    return tmp_path / "texts"


def read(directory: Path, folder: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / folder).to_pylist()
    return rows


def test_a_text_with_words_of_a_benchmark_is_dropped_with_its_row(run: Path, capsys: Any) -> None:
    flags = ("--decontaminate", "said", "--against", "bench.jsonl", "--column", "q")
    done = call(capsys, "select", "texts", *flags, "-o", "clean")
    assert done.code == 0, done.err
    assert "kept 3 of 5 samples (contaminated 2)" in done.err
    assert [row["id"] for row in read(Path("clean"))] == ["r1", "r3", "r4"]
    assert {row["id"]: (row["code"], row["message"]) for row in read(Path("clean"), "failed")} == {
        "r0": ("not_selected", "shares words with row 3 of bench.jsonl: said"),
        "r2": ("not_selected", "shares words with row 2 of bench.jsonl: said"),
    }
    fewer = call(capsys, "select", "texts", *flags, "--ngram", "3", "-o", "fewer")
    assert fewer.code == 0, fewer.err
    assert [row["id"] for row in read(Path("fewer"))] == ["r1", "r4"]
    command = re.findall(r"^synthia-batch select .*", Path("clean/README.md").read_text(), re.MULTILINE)
    assert command[0].endswith("--decontaminate=said --against=bench.jsonl --column=q --ngram=13")
    for wrong, said in (
        (flags[:4], "--decontaminate needs --column, which is not set"),
        (flags[2:], "--against belongs to decontaminate, which is not set"),
        ((*flags[:5], "w"), "decontaminate.column: bench.jsonl has no column w; there are n, q"),
        ((*flags[:3], "bunch.jsonl", *flags[4:]), "decontaminate.against: bunch.jsonl: "),
        ((*flags, "--ngram", "0"), "--ngram: Input should be greater than or equal to 1"),
        (
            ("--decontaminate", "sad", *flags[2:]),
            "decontaminate.on: sad: there is no sad; did you mean said?",
        ),
    ):
        refused = call(capsys, "select", "texts", *wrong, "-o", "wrong")
        assert (refused.code, said in refused.err) == (2, True), refused.err
    assert not Path("wrong").exists()


def test_the_formats_of_a_benchmark_give_the_same_selection(run: Path) -> None:
    rows = [{"q": row.get("q")} for row in map(json.loads, Path("bench.jsonl").read_text().splitlines())]
    pq.write_table(pa.Table.from_pylist(rows), "bench.parquet")
    with Path("bench.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q"])
        writer.writeheader()
        writer.writerows(rows)
    Path("parts").mkdir()
    write_jsonl(Path("parts/a.jsonl"), rows[:2])
    write_jsonl(Path("parts/b.jsonl"), rows[2:])
    told = {}
    for name in ("bench.jsonl", "bench.parquet", "bench.csv", "parts"):
        step = {"against": name, "column": "q", "on": "said"}
        made = select_samples(run, Select.model_validate({"decontaminate": step}), Path(f"of {name}"))
        told[name] = [row["message"] for row in read(made.directory, "failed")]
    assert told["bench.parquet"][0] == "shares words with row 3 of bench.parquet: said"
    assert told["parts"] == [f"shares words with row {row}: said" for row in ("1 of b.jsonl", "2 of a.jsonl")]
    assert all(len(messages) == 2 for messages in told.values())


def test_what_a_benchmark_holds_is_the_identity_and_its_place_is_not(run: Path) -> None:
    step = {"against": "bench.jsonl", "column": "q", "on": "said"}
    select_samples(run, Select.model_validate({"decontaminate": step}), Path("one"))
    Path("elsewhere").mkdir()
    Path("bench.jsonl").rename("elsewhere/bench.jsonl")
    moved = Select.model_validate({"decontaminate": {**step, "against": Path("elsewhere/bench.jsonl")}})
    select_samples(run, moved, Path("two"))
    for name in ("README.md", "manifest.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    identity = require_plan(RunDir(Path("one")))["identity"]["select"]
    assert identity["decontaminate"] == {"column": "q", "on": "said"}
    assert [*identity["benchmark"]] == ["bench.jsonl"]
    with Path("elsewhere/bench.jsonl").open("a") as file:
        file.write('{"q": "one more"}\n')
    with pytest.raises(IdentityMismatch, match=r"select\.benchmark\.bench\.jsonl"):
        select_samples(run, moved, Path("two"))


def test_a_damaged_benchmark_is_refused_with_its_line(run: Path) -> None:
    with Path("bench.jsonl").open("a") as file:
        file.write("no JSON\n")
    step = {"against": "bench.jsonl", "column": "q", "on": "said"}
    with pytest.raises(UsageError, match=r"bench\.jsonl:5: "):
        select_samples(run, Select.model_validate({"decontaminate": step}), Path("x"))
    with pytest.raises(ValueError, match="Input should be a file on this machine, not an address"):
        Select.model_validate({"decontaminate": {**step, "against": "https://example.org/b.jsonl"}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP—me now_or ever!", ["don", "t", "stop", "me", "now", "or", "ever"]),
        ("ﬁve ½ Ⅷ １２", ["five", "1", "2", "viii", "12"]),
        ("e\u0301te\u0301 Straße", ["été", "straße"]),
        (" ... ", []),
    ],
)
def test_words_are_runs_of_letters_and_digits_in_lower_case(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def list_runs(text: str, ngram: int) -> set[tuple[str, ...]]:
    """Return the runs of words of a text, as the documentation says."""
    words = text.split()
    size = min(ngram, len(words))
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if words else set()


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), max_size=12)


@given(benchmark=TEXTS, texts=TEXTS, ngram=st.integers(1, 4))
@settings(deadline=None)
def test_what_is_shared_is_what_a_plain_reading_finds(
    tmp_path_factory: pytest.TempPathFactory, benchmark: list[str], texts: list[str], ngram: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bench-{abs(hash(tuple(benchmark)))}.jsonl"
    write_jsonl(path, [{"q": text} for text in benchmark] or [{"q": None}])
    found = decide(path, ngram, texts)
    for number, text in enumerate(texts):
        shared = [
            row for row, other in enumerate(benchmark, 1) if list_runs(text, ngram) & list_runs(other, ngram)
        ]
        assert found.verdicts[number] == (Verdict.CONTAMINATED if shared else Verdict.KEPT)
        if shared:
            message = f"shares words with row {shared[0]} of {path.name}: q.response"
            assert found.explain(number, str) == ("not_selected", message)


def decide(path: Path, ngram: int, texts: list[str]) -> Decisions:
    step = {"against": path, "column": "q", "on": "q.response", "ngram": ngram}
    samples = [
        {"id": str(number), "system": "none", "sample_index": 0, "row_index": number, "response": text}
        for number, text in enumerate(texts)
    ]
    return Selector(Select.model_validate({"decontaminate": step}), NAMES).decide(lambda columns: samples)


def test_a_fault_counts_only_where_the_sample_is_still_there(run: Path) -> None:
    step = {"against": "bench.jsonl", "column": "q", "on": "1 // 0 if id == 'r1' else said"}
    select_samples(run, Select.model_validate({"decontaminate": step, "where": "id != 'r3'"}), Path("a"))
    codes = {row["id"]: row["code"] for row in read(Path("a"), "failed")}
    assert (codes["r1"], codes["r3"]) == ("expression_failed", "not_selected")
    select_samples(run, Select.model_validate({"decontaminate": step, "where": "id != 'r1'"}), Path("b"))
    codes = {row["id"]: row["code"] for row in read(Path("b"), "failed")}
    assert codes["r1"] == "not_selected"
