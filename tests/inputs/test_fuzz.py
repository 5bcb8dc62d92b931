"""Mutated inputs give rows or a refusal, never a traceback."""

import io
import json
import os
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from synthia_batch.errors import IntegrityError, UsageError
from synthia_batch.inputs import Selection, open_source

ROWS = [
    {
        "prompt": f"Quésti\U0001f600n {number}",
        "messages": [{"role": "user", "content": f"Why {number}?"}],
        "qid": f"q{number}",
        "x": {"a": [number, 0.5, None]},
        "data": [f"Why {number}?", "Because."],
        "pairs": [{"human": f"Why {number}?", "assistant": None}],
        "nested": [[{"role": "user", "content": f"Why {number}?"}]],
    }
    for number in range(40)
]
SELECTIONS = (
    Selection(),
    Selection(prompt_column="prompt", keep_columns=("x", "qid")),
    Selection(messages_column="messages", system_column="prompt", id_column="qid", limit=30),
    Selection(format="ultrachat", id_column="qid", on_bad_row="fail"),
    Selection(messages_column="pairs", keep_columns=("nested", "x"), on_bad_row="fail"),
    Selection(turns_column="nested", final_assistant="continue"),
)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
LONG = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutate(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        # The end of a Parquet file is its footer, where damage reaches furthest.
        place = draw(st.integers(0, len(data)) | st.integers(max(0, len(data) - 2000), len(data)))
        kind = draw(st.sampled_from(["replace", "delete", "insert", "cut", "repeat"]))
        length = draw(st.integers(1, 8))
        if kind == "replace":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "delete":
            del data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(
                st.sampled_from([b"\\ud800", b"NaN", b"\n", b'"', b"[", b"\xff", b"1e999", b"{"])
            )
        elif kind == "cut":
            del data[place:]
        else:
            data[place:place] = data[place : place + 64]
    return bytes(data)


def make_jsonl() -> list[bytes]:
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(ROWS)]
    return ["\n".join(lines).encode(), ("\ufeff" + "\r\n".join(lines) + "\n\n").encode()]


@cache
def make_parquet() -> list[bytes]:
    table = pa.Table.from_pylist(ROWS)
    encoded = table.set_column(0, "prompt", table["prompt"].combine_chunks().dictionary_encode())
    files = []
    for options in (
        {"compression": "none", "use_dictionary": False},
        {"row_group_size": 15, "write_page_checksum": True},
        {"compression": "zstd", "data_page_version": "2.0"},
    ):
        for content in (table, encoded):
            file = io.BytesIO()
            parquet.write_table(content, file, **options)
            files.append(file.getvalue())
    return files


def check_text(text: str) -> None:
    """A message is to be printed: it must be encodable, and no page long."""
    assert len(text.encode()) < 10_000


def read_or_refuse(path: Path, selection: Selection) -> None:
    try:
        source = open_source(path)
        scan = source.scan(selection, path.parent)
        rows = list(source.read_rows(scan, 0, scan.rows))
    except (UsageError, IntegrityError) as error:
        check_text(str(error))
        return
    assert [row.index for row in rows] == list(range(scan.rows))
    assert len({row.id for row in rows}) == scan.rows
    for row in rows:
        assert row.id.encode()
        assert all(message.content.encode() for message in row.messages)


@LONG
@given(data=mutate(make_jsonl()), selection=st.sampled_from(SELECTIONS))
def test_mutated_jsonl_gives_rows_or_a_refusal(tmp_path: Path, data: bytes, selection: Selection) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    read_or_refuse(path, selection)


@LONG
@given(data=mutate(make_parquet()), selection=st.sampled_from(SELECTIONS))
def test_mutated_parquet_gives_rows_or_a_refusal(tmp_path: Path, data: bytes, selection: Selection) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(data)
    read_or_refuse(path, selection)


@pytest.mark.parametrize("selection", SELECTIONS)
@LONG
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_refusal(tmp_path: Path, data: bytes, selection: Selection) -> None:
    for name in ("rows.jsonl", "rows.parquet", "rows.bin"):
        path = tmp_path / name
        path.write_bytes(data)
        read_or_refuse(path, selection)
