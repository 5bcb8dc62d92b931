"""What every source promises, run over every format."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from blake3 import blake3
from pyarrow import parquet
from reading import list_faults, read_all, scan

from synthia_batch.core.digest import canonical_json
from synthia_batch.core.types import KeptColumn, Message, Row
from synthia_batch.errors import InputRefused, IntegrityError, UsageError
from synthia_batch.inputs import Scan, Selection, Source, open_source
from synthia_batch.inputs.records.hash_index import HashIndex
from synthia_batch.inputs.records.record import hash_content
from synthia_batch.inputs.records.row_ids import DuplicateIndex

Write = Callable[[list[dict[str, Any]]], Path]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=700, write_page_checksum=True)
    return path


@pytest.fixture(params=[write_jsonl, write_parquet], ids=["jsonl", "parquet"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    return lambda rows: request.param(tmp_path, rows)


@pytest.mark.parametrize(
    "selection",
    [{}, {"prompt_column": "text"}, {"id_column": "id", "keep_columns": ("id", "b", "a")}],
    ids=str,
)
def test_the_columns_detected_are_those_of_the_scan(write: Write, selection: dict[str, Any]) -> None:
    path = write([{"id": f"{n}", "text": "Why?", "question": "What?", "a": 1, "b": 2} for n in range(3)])
    assert open_source(path).detect(Selection(**selection)) == scan(path, **selection).columns
    with pytest.raises(UsageError, match="no column 'nope'"):
        open_source(path).detect(Selection(prompt_column="nope"))


def test_columns_are_detected_behind_lines_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('\n{"prompt"\n{"question": "Why?"}\n')
    assert open_source(path).detect(Selection()).prompt == "question"
    path.write_text('{"prompt"\n[]\n')
    with pytest.raises(InputRefused) as refused:
        open_source(path).detect(Selection())
    assert len(refused.value.faults) == 2
    path.write_text("\n\n")
    with pytest.raises(InputRefused, match="only blank lines"):
        open_source(path).detect(Selection())


MANY = [{"prompt": f"Question é {number % 900}", "score": number} for number in range(3500)]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {
            "qid": 7 + number,
            "prompt": f"Warum \U0001f600 {number % 3}?\n",
            "tone": "kind" if number % 2 else None,
            "score": number / 4,
            "good": number % 2 == 0,
            "rank": number,
        }
        for number in range(50)
    ]
    selections: list[dict[str, Any]] = [
        {"keep_columns": ("score", "good", "rank", "tone")},
        {"id_column": "qid", "system_column": "tone"},
        {"prompt_column": "prompt", "limit": 7},
    ]
    for selection in selections:
        left = write_jsonl(tmp_path, rows)
        right = write_parquet(tmp_path, rows)
        assert read_all(left, **selection) == read_all(right, **selection)
        assert scan(left, **selection).kept == scan(right, **selection).kept


def test_every_format_gives_the_same_conversations(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Why {number}?"},
                {"role": "assistant", "content": "Because."},
                {"role": "user", "content": "And then?"},
            ][0 if number % 2 else 1 :]
        }
        for number in range(20)
    ]
    texts = [{"messages": json.dumps(row["messages"])} for row in rows]
    expected = read_all(write_jsonl(tmp_path, rows))
    assert expected[1].messages[0] == Message("system", "Be brief.")
    assert read_all(write_parquet(tmp_path, rows)) == expected
    assert read_all(write_parquet(tmp_path, texts)) == expected
    assert read_all(write_jsonl(tmp_path, texts)) == expected


def test_a_row_holds_what_its_record_does(write: Write) -> None:
    path = write([{"prompt": "Why?", "tone": "Be kind.", "qid": "a", "score": 1}])
    (row,) = read_all(path, id_column="qid", system_column="tone", keep_columns=("score", "qid"))
    assert row == Row(
        index=0,
        id="a",
        messages=(Message("user", "Why?"),),
        system="Be kind.",
        kept={"score": 1, "qid": "a"},
        line=1,
    )


def test_an_id_is_the_hash_of_the_content_and_an_occurrence_number(write: Write) -> None:
    path = write([{"prompt": text} for text in ("a", "b", "a", "a", "b")])
    ids = [row.id for row in read_all(path)]
    assert len(set(ids)) == 5
    assert [row_id.split("-")[1] for row_id in ids] == ["0", "0", "1", "2", "1"]
    content = canonical_json({"messages": [{"role": "user", "content": "a"}], "system": None})
    assert ids[0] == f"{blake3(content).hexdigest()[:16]}-0"


def test_the_hash_is_that_of_canonical_json() -> None:
    messages = (Message("system", 'a"\\\n\x00\u2028'), Message("user", "é\U0001f600\x7f"))
    for system in (None, "", "Be \t brief"):
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text = canonical_json({"messages": turns, "system": system})
        assert hash_content(messages, system) == blake3(text).digest(length=8)


def test_the_id_does_not_depend_on_where_the_row_is(write: Write) -> None:
    first = {row.id for row in read_all(write(MANY))}
    assert first == {row.id for row in read_all(write(MANY[::-1]))}


def test_any_range_is_the_same_as_reading_from_the_start(write: Write) -> None:
    path = write(MANY)
    everything = read_all(path, keep_columns=("score",))
    assert [row.index for row in everything] == list(range(3500))
    assert [row.kept["score"] for row in everything] == list(range(3500))
    source = open_source(path)
    found = source.scan(Selection(keep_columns=("score",)), path.parent)
    ranges = [
        (0, 1),
        (999, 1001),
        (2000, 3000),
        (3000, 3500),
        (3499, 3500),
        (700, 1400),
        (5, 5),
        (1400, 2100),
    ]
    for first, stop in ranges:
        assert list(source.read_rows(found, first, stop)) == everything[first:stop], (first, stop)


def test_two_readings_can_go_on_side_by_side(write: Write) -> None:
    path = write(MANY)
    source = open_source(path)
    found = source.scan(Selection(), path.parent)
    everything = list(source.read_rows(found, 0, 3500))
    feeding: list[Row] = []
    encoding: list[Row] = []
    for start in range(0, 3500, 500):
        ahead = source.read_rows(found, start, start + 500)
        feeding += [next(ahead) for _ in range(250)]
        if start:
            encoding += source.read_rows(found, start - 500, start)
        feeding += ahead
    assert feeding == everything
    assert encoding == everything[:3000]


def test_a_range_that_is_given_up_half_way_does_no_harm(write: Write) -> None:
    path = write(MANY)
    source = open_source(path)
    found = source.scan(Selection(), path.parent)
    assert next(source.read_rows(found, 0, 100)).index == 0
    assert [row.index for row in source.read_rows(found, 100, 103)] == [100, 101, 102]


def test_a_scan_survives_a_process(write: Write, tmp_path: Path) -> None:
    path = write(MANY)
    source = open_source(path)
    found = source.scan(Selection(keep_columns=("score",)), tmp_path)
    everything = list(source.read_rows(found, 0, 3500))
    (tmp_path / "occurrences").write_bytes(b"".join(found.duplicates.encode()))
    data = json.loads(json.dumps(found.to_dict()))
    again = Scan.from_dict(data, DuplicateIndex.load(tmp_path / "occurrences"))
    assert again == found
    assert list(open_source(path).read_rows(again, 1500, 3500)) == everything[1500:]


def test_ids_are_the_same_in_another_process(write: Write) -> None:
    path = write(MANY[:100])
    script = (
        "import sys; from pathlib import Path; from synthia_batch.inputs import *\n"
        "source = open_source(Path(sys.argv[1])); scan = source.scan(Selection(), Path(sys.argv[1]).parent)\n"
        "print(*[row.id for row in source.read_rows(scan, 0, scan.rows)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [row.id for row in read_all(path)]


def test_a_damaged_record_of_the_scan_is_refused(write: Write) -> None:
    data = scan(write(MANY[:3])).to_dict()
    for name in data:
        with pytest.raises(IntegrityError):
            Scan.from_dict({**data, name: "no"}, DuplicateIndex.none())


def test_a_limit_takes_the_first_rows_and_looks_no_further(write: Write) -> None:
    path = write([{"prompt": "a"}, {"prompt": "b"}, {"prompt": " "}])
    assert [row.messages[0].content for row in read_all(path, limit=2)] == ["a", "b"]
    assert "row 3" in list_faults(path)[0] or ":3:" in list_faults(path)[0]
    assert scan(write(MANY), limit=9999).rows == 3500


def test_progress_is_told(write: Write) -> None:
    path = write([{"prompt": "a"}] * 25_000)
    told: list[int] = []
    open_source(path).scan(Selection(), path.parent, told.append)
    assert told == sorted(told)
    assert len(told) >= 3
    assert told[-1] == 25_000


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_spilling_to_disk_changes_nothing(
    write: Write, block: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{number % 37}"} for number in range(300)]
    path = write(rows)
    expected = read_all(path)
    monkeypatch.setattr(HashIndex.__init__, "__defaults__", (block,))
    assert read_all(path) == expected
    assert not list(tmp_path.glob("ids-*"))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"prompt": "a"}, {"prompt": None}], "must be a string, not null"),
        ([{"prompt": "a"}, {"prompt": ""}], "is blank"),
        ([{"prompt": "a"}, {"prompt": " \n\u2003"}], "is blank"),
        ([{"prompt": 1}, {"prompt": 2}], "column 'prompt' must be a string"),
        ([{"messages": [{"role": "user", "content": "a"}]}, {"messages": []}], "empty list"),
        ([{"messages": 5}], "messages"),
        ([{"messages": "nope"}], "as JSON not valid JSON"),
    ],
)
def test_a_bad_row_is_refused(write: Write, rows: list[dict[str, Any]], fault: str) -> None:
    path = write(rows)
    faults = list_faults(path)
    assert fault in faults[0]
    assert faults[0].startswith(str(path))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (["a", None], "not null"),
        (["a", " "], "every row needs an id"),
        ([1.5, 2.5], "must be a string or an integer"),
        ([True, False], "must be a string or an integer"),
    ],
)
def test_a_bad_id_is_refused(write: Write, values: list[Any], fault: str) -> None:
    path = write([{"prompt": "a", "qid": value} for value in values])
    assert fault in list_faults(path, id_column="qid")[0]


def test_a_system_column_may_be_null_but_not_a_number(write: Write) -> None:
    path = write(
        [{"prompt": "a", "tone": None}, {"prompt": "b", "tone": "Be kind."}, {"prompt": "c", "tone": " "}]
    )
    assert [row.system for row in read_all(path, system_column="tone")] == [None, "Be kind.", None]
    path = write([{"prompt": "a", "tone": 5}])
    assert "column 'tone' must be a string" in list_faults(path, system_column="tone")[0]


def test_the_system_text_is_part_of_the_id(write: Write) -> None:
    path = write([{"prompt": "a", "tone": "x"}, {"prompt": "a", "tone": "y"}])
    ids = [row.id for row in read_all(path, system_column="tone")]
    assert [row_id[-2:] for row_id in ids] == ["-0", "-0"]
    assert ids[0] != ids[1]


def test_duplicate_ids_are_refused_with_both_places(write: Write) -> None:
    path = write([{"prompt": "a", "qid": qid} for qid in ("x", "y", "z", "y", "x", "y")])
    faults = list_faults(path, id_column="qid")
    assert len(faults) == 3
    assert "'y'" in faults[0]
    if path.suffix == ".jsonl":
        assert faults[0].startswith(f"{path}:4: ")
        assert faults[0].endswith(f"{path}:2")
    else:
        assert faults[0].startswith(f"{path}: row 4: ")
        assert faults[0].endswith("row 2")


def test_ten_faults_are_listed_and_more_are_mentioned(write: Write) -> None:
    rows = [{"prompt": "a", "qid": "same"}] * 30
    with pytest.raises(InputRefused) as caught:
        scan(write(rows), id_column="qid")
    assert (len(caught.value.faults), caught.value.more) == (10, True)
    with pytest.raises(InputRefused) as caught:
        scan(write([{"prompt": "a"}, *[{"prompt": ""}] * 10]))
    assert (len(caught.value.faults), caught.value.more) == (10, False)
    with pytest.raises(InputRefused) as caught:
        scan(write([{"prompt": "a"}, *[{"prompt": ""}] * 11]))
    assert (len(caught.value.faults), caught.value.more) == (10, True)


def test_equal_hashes_of_different_ids_are_no_duplicates(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthia_batch.inputs.records.record.hash_id", lambda row_id: b"same8byt")
    path = write([{"prompt": "a", "qid": number} for number in range(40)])
    assert [row.id for row in read_all(path, id_column="qid")] == [str(number) for number in range(40)]
    path = write([{"prompt": "a", "qid": number % 39} for number in range(40)])
    (fault,) = list_faults(path, id_column="qid")
    assert "'0'" in fault


def test_a_missing_column_is_named_with_those_that_exist(write: Write) -> None:
    path = write([{"qestion": "a", "score": 1}])
    for selection, missing in (
        ({"prompt_column": "question"}, "question"),
        ({"prompt_column": "qestion", "id_column": "scor"}, "scor"),
        ({"prompt_column": "qestion", "system_column": "tone"}, "tone"),
        ({"prompt_column": "qestion", "keep_columns": ("scores",)}, "scores"),
    ):
        with pytest.raises(UsageError, match=f"no column '{missing}'.*columns: qestion, score"):
            scan(path, **selection)
    with pytest.raises(UsageError, match="did you mean 'qestion'"):
        scan(path, prompt_column="question")
    with pytest.raises(UsageError, match="--prompt-column"):
        scan(path)


@pytest.mark.parametrize("change", ["grow", "same size", "replace", "delete"])
def test_a_file_that_changes_after_the_scan_is_noticed(write: Write, change: str) -> None:
    path = write(MANY)
    source = open_source(path)
    found = source.scan(Selection(), path.parent)
    content = path.read_bytes()
    if change == "grow":
        path.write_bytes(content + b" ")
    elif change == "same size":
        path.write_bytes(content.replace(b"Question", b"question"))
        os.utime(path, ns=(1, 1))
    elif change == "replace":
        path.with_name("new").write_bytes(content)
        path.with_name("new").replace(path)
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=r"rows\.(jsonl|parquet)"):
        list(source.read_rows(found, 0, 10))


def test_another_file_of_the_same_size_ends_in_an_integrity_error(write: Write) -> None:
    path = write(MANY)
    found = scan(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\n" * (len(content) - len(content) // 3))
    with pytest.raises(IntegrityError, match="changed since the run began"):
        list(open_source(path).read_rows(found, 0, 3500))


def test_both_kinds_of_text_cannot_be_named(write: Write) -> None:
    with pytest.raises(UsageError, match="name only the one"):
        scan(write(MANY[:1]), prompt_column="prompt", messages_column="score")


def test_kept_columns_come_in_the_order_named(write: Write) -> None:
    path = write([{"prompt": "a", "score": 1, "tone": "x"}])
    found = scan(path, keep_columns=("tone", "score", "tone"))
    assert found.kept == (KeptColumn(name="tone", type="string"), KeptColumn(name="score", type="int64"))
    assert list(read_all(path, keep_columns=("tone", "score"))[0].kept) == ["tone", "score"]


def read_peak_memory(path: Path, rows: int) -> int:
    """Scan and read the `rows` of `path` in a process of its own; return the most memory it had, in MiB."""
    script = (
        "import sys; from pathlib import Path; from synthia_batch.inputs import *\n"
        "source = open_source(Path(sys.argv[1])); scan = source.scan(Selection(), Path(sys.argv[1]).parent)\n"
        "print(sum(1 for row in source.read_rows(scan, 0, scan.rows)))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    read, peak_mib = map(int, done.stdout.split())
    assert read == rows
    return peak_mib


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(write: Write) -> None:
    # 88 and 250 MiB of prompts, in row groups of 44 MiB.
    small, large = (
        read_peak_memory(write([{"prompt": f"{number}" + "x" * 65_536} for number in range(rows)]), rows)
        for rows in (1400, 4000)
    )
    assert large < small + 30
    assert (
        large < 300
    )  # A row group whose values all stand in its dictionary is decoded twice to measure them.


def test_a_source_is_a_source(write: Write) -> None:
    source: Source = open_source(write(MANY[:1]))
    assert Path(source.shown).name.startswith("rows.")
