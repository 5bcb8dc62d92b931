"""Parts: fixed columns, the same bytes for the same rows, and no altered byte unseen."""

import base64
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthia_batch.core.types import Failed, Finished, KeptColumn, Message, Row, Sample
from synthia_batch.errors import IntegrityError, UsageError
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.schema import (
    DataRecord,
    FailedRecord,
    PartFormat,
    data_schema,
    failed_schema,
)
from synthia_batch.storage.parts.writer import encode_part, open_data_part, open_failed_part

FORMAT = PartFormat(model="demo", source_file="inputs/q.jsonl", metadata={"plan": "c0ffee"})


def make_sample(index, kept=None):
    question = Message("user", f"question {index}?")
    row = Row(
        index=index, id=f"id-{index}", messages=(question,), system=None, kept=kept or {}, line=index + 1
    )
    messages = (Message("system", "Be brief."), question)
    return Sample(
        ordinal=index, row=row, system="synthia", messages=messages, index=0, seed=2**63 - 1 - index
    )


def make_record(index, kept=None):
    finished = Finished(
        ordinal=index,
        response=f"naïve answer {index} 🙂",
        reasoning=None,
        finish_reason="stop",
        prompt_tokens=12,
        completion_tokens=5,
    )
    return DataRecord(make_sample(index, kept), finished)


def make_failed(index):
    failed = Failed(ordinal=index, code="prompt_too_long", message="the prompt has 9999 tokens")
    return FailedRecord(make_sample(index), failed)


def read_back(tmp_path, encoded):
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(encoded.content)
    return read_part(path)


def test_a_finished_sample_is_one_row_with_the_whole_conversation(tmp_path):
    table = read_back(tmp_path, encode_part(open_data_part(FORMAT), [make_record(0), make_record(1)]))

    assert table.to_pylist()[1] == {
        "id": "id-1",
        "row_index": 1,
        "sample_index": 0,
        "system": "synthia",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "question 1?"},
            {"role": "assistant", "content": "naïve answer 1 🙂"},
        ],
        "response": "naïve answer 1 🙂",
        "reasoning": None,
        "finish_reason": "stop",
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "seed": 2**63 - 2,
        "model": "demo",
    }


def test_a_failed_sample_is_one_row_with_its_reason_and_its_line(tmp_path):
    table = read_back(tmp_path, encode_part(open_failed_part(FORMAT), [make_failed(3)]))

    assert table.to_pylist() == [
        {
            "id": "id-3",
            "row_index": 3,
            "sample_index": 0,
            "code": "prompt_too_long",
            "message": "the prompt has 9999 tokens",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "question 3?"},
            ],
            "source_file": "inputs/q.jsonl",
            "source_line": 4,
        }
    ]


def test_the_columns_have_one_order_and_one_type_in_every_file(tmp_path):
    messages = "list<item: struct<role: string, content: string>>"
    assert [(field.name, str(field.type)) for field in data_schema([])] == [
        ("id", "string"),
        ("row_index", "int64"),
        ("sample_index", "int32"),
        ("system", "string"),
        ("messages", messages),
        ("response", "string"),
        ("reasoning", "string"),
        ("finish_reason", "string"),
        ("prompt_tokens", "int32"),
        ("completion_tokens", "int32"),
        ("seed", "int64"),
        ("model", "string"),
    ]
    for encoded, schema in (
        (encode_part(open_data_part(FORMAT), [make_record(0)]), data_schema([])),
        (encode_part(open_failed_part(FORMAT), [make_failed(0)]), failed_schema()),
    ):
        table = read_back(tmp_path, encoded)
        assert table.schema.equals(schema)
        assert table.schema.metadata == {b"plan": b"c0ffee"}


def test_kept_columns_keep_their_types_also_where_all_values_are_missing(tmp_path):
    stamp = pa.timestamp("us", tz="UTC")
    serialized = base64.b64encode(pa.schema([pa.field("at", stamp)]).serialize()).decode()
    kept = (
        KeptColumn(name="topic", type="string"),
        KeptColumn(name="count", type="int64"),
        KeptColumn(name="score", type="double"),
        KeptColumn(name="good", type="bool"),
        KeptColumn(name="extra", type="json"),
        KeptColumn(name="at", type=f"arrow:{serialized}"),
    )
    types = ["string", "int64", "double", "bool", "string", "timestamp[us, tz=UTC]"]
    part_format = PartFormat(model="demo", source_file="q", kept=kept, metadata={})
    at = datetime(2026, 11, 21, tzinfo=UTC)
    values = {"topic": "a", "count": 2**40, "score": 0.5, "good": True, "extra": {"ö": [1]}, "at": at}

    table = read_back(
        tmp_path, encode_part(open_data_part(part_format), [make_record(0, values), make_record(1)])
    )
    empty = read_back(tmp_path, encode_part(open_data_part(part_format), [make_record(0)]))

    assert table.select([column.name for column in kept]).to_pylist() == [
        {**values, "extra": '{"ö":[1]}'},
        dict.fromkeys(values),
    ]
    for read in (table, empty):
        assert [str(read.schema.field(column.name).type) for column in kept] == types


def test_a_kept_column_that_cannot_be_written_is_the_users_to_mend():
    with pytest.raises(UsageError, match="two columns 'response'"):
        data_schema([KeptColumn(name="response", type="string")])
    with pytest.raises(UsageError, match="unknown type, decimal"):
        data_schema([KeptColumn(name="price", type="decimal")])
    with pytest.raises(UsageError, match="unknown type, arrow:AAAA"):
        data_schema([KeptColumn(name="price", type="arrow:AAAA")])
    count = KeptColumn(name="count", type="int64")
    part_format = PartFormat(model="demo", source_file="q", kept=(count,), metadata={})
    with pytest.raises(UsageError, match="'count' has a value that is no int64"):
        encode_part(open_data_part(part_format), [make_record(0, {"count": "many"})])


def test_a_file_without_rows_is_never_made():
    with pytest.raises(ValueError, match="at least one row"):
        encode_part(open_data_part(FORMAT), [])
    with pytest.raises(ValueError, match="at least one row"):
        encode_part(open_failed_part(FORMAT), [])


def print_digest():
    records = [make_record(index) for index in range(12_000)]
    metadata = dict.fromkeys({"b", "a", "c"}, "x")
    part_format = PartFormat(model="demo", source_file="q", metadata=metadata)
    print(hashlib.sha256(encode_part(open_data_part(part_format), records).content).hexdigest())


def test_the_same_rows_give_the_same_bytes_in_every_process():
    command = [sys.executable, "-c", "import test_part; test_part.print_digest()"]
    processes = [
        subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC+{seed}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)

    assert len(first) == 65
    assert first == second


def test_rows_are_in_groups_of_ten_thousand(tmp_path):
    encoded = encode_part(open_data_part(FORMAT), [make_record(index) for index in range(10_001)])
    path = tmp_path / "part.parquet"
    path.write_bytes(encoded.content)

    metadata = pq.read_metadata(path)
    assert (encoded.rows, metadata.num_rows, metadata.num_row_groups) == (10_001, 10_001, 2)


def test_no_flipped_bit_in_a_page_gives_other_rows(tmp_path):
    encoded = encode_part(open_data_part(FORMAT), [make_record(0), make_record(1)])
    path = tmp_path / "part.parquet"
    path.write_bytes(encoded.content)
    rows = read_part(path).to_pylist()
    footer_bytes = int.from_bytes(encoded.content[-8:-4], "little")

    # The footer itself has no checksum: there the ledger's SHA-256 of the whole file is what tells.
    for position in range(len(encoded.content) - 8 - footer_bytes):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(bytes([encoded.content[position] ^ 1]))
        try:
            assert read_part(path).to_pylist() == rows, position
        except IntegrityError:
            continue
        finally:
            path.write_bytes(encoded.content)


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"no parquet at all"])
def test_a_file_that_is_no_part_is_named(tmp_path, content):
    path = tmp_path / "train-00000-of-00001.parquet"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(IntegrityError, match=r"train-00000-of-00001\.parquet: cannot be read as a part"):
        read_part(path)
