"""Whatever the input is, the answer is a dataset or a refusal that names something: never a traceback.

Mutations are drawn from a fixed seed, so that a failure names the case that repeats it.
"""

import csv
import datetime
import gzip
import json
import random
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inside import call

CASES = 100
ALLOWED = {0, 2, 3, 4}
RUN = ("--engine", "scripted", "--pool", "local", "-q", "--json")
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 2**63, 2**64, 1e308, "", " ", "\x00", "\ufeff", "\U0001f600", "a\r\nb", [], {}, [[]],
    [{"role": "user", "content": "Hi"}], [{"role": "user"}], [{"role": "assistant", "content": "Hi"}],
    [{"role": 1, "content": None}], {"role": "user", "content": "Hi"}, "x" * 20_000, {"a": [1, {"b": None}]},
]  # fmt: skip
ODD_LINES = [
    b"", b"null", b"[]", b"7", b'"text"', b"{", b"}", b'{"question": NaN}', b'{"question": 1e999}',
    b'{"question": "\\ud800"}', b'{"question": "\xff"}', b'{"question": "a", "question": "b"}',
    b"[" * 5000, b'{"question":' + b"[" * 3000 + b"]" * 3000 + b"}", b'{"question": ' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf{}", b"\x00", b'{"": ""}', b'{"question": "a"}\x1e', b"\xe2\x80\xa8",
]  # fmt: skip
FLAGS: list[tuple[str, ...]] = [
    (), (), ("--keep-columns", "topic,number"), ("--id-column", "id"), ("--prompt-column", "question"),
    ("--messages-column", "messages"), ("--system-column", "topic"), ("--limit", "3"),
    ("-n", "2", "-s", "none"), ("--on-bad-row", "fail"), ("--on-bad-row", "fail", "--keep-columns", "topic"),
    ("--final-assistant", "continue"), ("--turns-column", "messages", "--on-bad-row", "fail"),
    ("--input-format", "sharegpt", "--on-bad-row", "fail"),
    ("--input-format", "alpaca", "--on-bad-row", "fail"),
    ("--input-format", "ultrachat", "--on-bad-row", "fail"), ("--turns-column", "conversations"),
    ("--on-bad-row", "fail", "--max-row-bytes", "200"),
]  # fmt: skip
ODD_COLUMNS: list[Callable[[int], pa.Array]] = [
    pa.nulls,
    lambda rows: pa.array([b"\xff\xfe"] * rows, pa.binary()),
    lambda rows: pa.array(range(rows), pa.int8()),
    lambda rows: pa.array([None, *range(rows - 1)], pa.uint64()),
    lambda rows: pa.array([float("nan")] * rows, pa.float16()),
    lambda rows: pa.array([1] * rows, pa.timestamp("ns", tz="UTC")),
    lambda rows: pa.array([1] * rows, pa.duration("us")),
    lambda rows: pa.array([1] * rows, pa.decimal128(38, 5)),
    lambda rows: pa.array(["x"] * rows).dictionary_encode(),
    lambda rows: pa.array(["large"] * rows, pa.large_string()),
    lambda rows: pa.array(["view"] * rows, pa.string_view()),
    lambda rows: pa.array([["a", None]] * rows, pa.list_(pa.string())),
    lambda rows: pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
    lambda rows: pa.array([{"role": "user", "content": "Hi"}] * rows),
    lambda rows: pa.array([[{"role": "user", "content": "Hi"}]] * rows),
    lambda rows: pa.array([[{"content": "Hi", "name": None, "role": "user"}]] * rows),
    lambda rows: pa.array([[{"role": "assistant", "content": None}]] * rows),
    lambda rows: pa.array([[]] * rows, pa.list_(pa.struct([("role", pa.string())]))),
    lambda rows: pa.array(['{"role": "user"}'] * rows).cast(pa.json_()),
    lambda rows: pa.array([["{", None]] * rows).cast(pa.list_(pa.json_())),
    lambda rows: pa.array([bytes(16)] * rows, pa.uuid()),
    lambda rows: pa.array([2**62] * rows, pa.timestamp("us")),
    lambda rows: pa.array([1] * rows, pa.time64("ns")),
    lambda rows: pa.array([["a"]] * rows, pa.list_view(pa.string())),
]  # fmt: skip


def make_records(chance: random.Random) -> list[dict[str, Any]]:
    return [
        {"id": f"row-{n}", "question": f"What is {n}?", "topic": "numbers", "number": n}
        for n in range(chance.randint(1, 12))
    ]


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 20])):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del data[at : at + chance.randint(1, 40)]
            case 3:
                del data[at:]
            case _:
                data[at:at] = data[at : at + 30]
    return bytes(data)


def make_jsonl(chance: random.Random) -> bytes:
    records = make_records(chance)
    for _ in range(chance.choice([0, 1, 1, 3])):
        record = chance.choice(records)
        key = chance.choice([*record, "messages", "text", "response", "seed"])
        record[key] = chance.choice(ODD_VALUES)
        if chance.random() < 0.2:
            record.pop(chance.choice(list(record)))
    lines = [json.dumps(record, ensure_ascii=chance.random() < 0.5).encode() for record in records]
    if chance.random() < 0.5:
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(ODD_LINES))
    content = chance.choice([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"]).join(lines)
    if chance.random() < 0.1:
        content = content.decode(errors="replace").encode("utf-16")
    return mutate_bytes(content, chance) if chance.random() < 0.4 else content


CALL = {"function": {"name": "add", "arguments": '{"a": 1}'}}
ODD_MESSAGES: list[Any] = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"},
    {"role": "tool", "content": ""}, {"from": 1},
    {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}, {"from": "observation", "value": None},
    {"from": "function_call", "value": "no"}, {"from": "function_call", "value": '{"name": "f"}'},
    {"role": "assistant", "content": " ", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
    {"role": "user", "content": [{"type": "text", "value": "a"}, "b", {"type": "image_url"}]},
    {"role": "assistant", "content": [{"type": "reasoning", "value": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": [{"type": "tool_call", "value": "{"}, {"type": "thinking"}]},
    {"human": "Hi", "assistant": "Yes"}, {"input": "Hi", "output": None, "system": "Be brief."},
    [{"role": "user", "content": "Hi"}],
    None, [], "text",
]  # fmt: skip


def make_talk(chance: random.Random) -> list[Any]:
    return ODD_MESSAGES[:1] if chance.random() < 0.7 else chance.choices(ODD_MESSAGES, k=chance.randint(0, 4))


SHAPED: dict[str, Callable[[random.Random], Any]] = {
    "messages": make_talk,
    "conversations": make_talk,
    "data": lambda chance: chance.choice([["Hi"], ["Hi", "Yes"], ["Hi", ""], [], [{"prompt": "Hi"}], None]),
    "temperature": lambda chance: chance.choice([0.5, "hot", None]),
    "turns": lambda chance: ["Hi"] if chance.random() < 0.7 else ["Hi", "", *make_talk(chance)],
    "instruction": lambda chance: chance.choice(["Add.", "Add.", " ", None, 1]),
    "input": lambda chance: chance.choice(["1, 2", "", None, []]),
    "history": lambda chance: chance.choice([[], [["Hi", "Yes"]], [["Hi"]], "x", None]),
    "system": lambda chance: chance.choice(["Be brief.", "", None, {}]),
    "tools": lambda chance: chance.choice(["[]", "", '[{"name": "f"}]', [CALL], "{", None]),
    "prompt": lambda chance: chance.choice(["Hi", "Hi", " ", ODD_MESSAGES[:1]]),
}
"""Columns by which shapes of records are detected, with values that fit and values that do not."""


def make_shaped(chance: random.Random) -> bytes:
    names = chance.sample(list(SHAPED), chance.randint(1, 4))
    records = [
        {name: SHAPED[name](chance) for name in names if chance.random() < 0.9}
        for _ in range(chance.randint(1, 4))
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def make_parquet(chance: random.Random) -> bytes:
    records = make_records(chance)
    table = pa.Table.from_pylist(records)
    for _ in range(chance.choice([0, 1, 1, 2])):
        name = chance.choice([*table.column_names, "messages", "text", "response", "", "a.b"])
        column = chance.choice(ODD_COLUMNS)(len(records))
        if name in table.column_names and chance.random() < 0.9:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    if chance.random() < 0.05:
        table = table.slice(0, 0)
    sink = BytesIO()
    pq.write_table(
        table, sink, compression=chance.choice(["none", "snappy", "zstd", "gzip"]), row_group_size=5
    )
    content = sink.getvalue()
    return mutate_bytes(content, chance) if chance.random() < 0.6 else content


def make_csv(chance: random.Random) -> bytes:
    sink = StringIO(newline="")
    delimiter = chance.choice([",", ",", ";", "\t"])
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=chance.choice(["\n", "\r\n"]))
    writer.writerow(["id", "question", "topic", "number"])
    for record in make_records(chance):
        odd = chance.choice(["", " ", "a\nb", "a\r\nb", '"', ",", "x" * 5000, "\x00", "\u2028", "\U0001f600"])
        values = [*record.values()]
        if chance.random() < 0.4:
            values[chance.randrange(4)] = odd
        writer.writerow(values[: 4 if chance.random() < 0.95 else 3])
    content = chance.choice([b"", b"", b"\xef\xbb\xbf"]) + sink.getvalue().encode()
    if chance.random() < 0.1:
        content = sink.getvalue().encode(chance.choice(["cp1252", "utf-16"]), errors="replace")
    return mutate_bytes(content, chance) if chance.random() < 0.4 else content


def make_json(chance: random.Random) -> bytes:
    records = make_records(chance)
    whole: Any = chance.choice([records, records, records, {"rows": records}, {"a": records[0]}])
    content = json.dumps(whole, indent=chance.choice([None, 2])).encode()
    if chance.random() < 0.3:
        content = b"\n".join(json.dumps(record).encode() for record in records)
    return mutate_bytes(content, chance) if chance.random() < 0.6 else content


def make_xlsx(chance: random.Random) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["id", "question", "topic", "number"])
    for record in make_records(chance):
        values: list[Any] = [*record.values()]
        if chance.random() < 0.2:
            odd = [None, 0.5, True, "#N/A", "=1+1", "a\nb", " ", datetime.time(1, 2), datetime.timedelta(1)]
            values[chance.randrange(4)] = chance.choice(odd)
        sheet.append(values[: 4 if chance.random() < 0.95 else 3])
    sink = BytesIO()
    book.save(sink)
    content = sink.getvalue()
    return mutate_bytes(content, chance) if chance.random() < 0.4 else content


def make_packed(chance: random.Random) -> bytes:
    plain = "".join(json.dumps(record) + "\n" for record in make_records(chance)).encode()
    content = gzip.compress(make_jsonl(chance) if chance.random() < 0.5 else plain)
    return mutate_bytes(content, chance) if chance.random() < 0.4 else content


def make_zstd(chance: random.Random) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(make_parquet(chance) if chance.random() < 0.8 else make_jsonl(chance))
    content = bytes(sink.getvalue().to_pybytes())
    return mutate_bytes(content, chance) if chance.random() < 0.4 else content


WANTED: list[dict[str, Any]] = [
    {}, {}, {}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}, {"top_logprobs": 1}, {"n": 2},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    {"tools": [{"name": "f"}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"tool_choice": {"function": None}}, {"tool_choice": []},
]  # fmt: skip
"""What requests want beside a text."""


def make_batch(chance: random.Random) -> bytes:
    lines = []
    for number in range(chance.randint(1, 6)):
        message = {"role": "user", "content": "Why?"}
        body: dict[str, Any] = {"model": "org/m", "messages": [message]}
        if chance.random() < 0.3:
            key = chance.choice(
                ["messages", "temperature", "stop", "seed", "n", "tools", "model", "max_tokens", "logprobs"]
            )
            body[key] = chance.choice(ODD_VALUES)
        body |= chance.choice(WANTED)
        record = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        if chance.random() < 0.1:
            record[chance.choice(list(record))] = chance.choice(ODD_VALUES)
        lines.append(json.dumps(record).encode())
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("suffix", "make"),
    [
        ("jsonl", make_jsonl),
        ("parquet", make_parquet),
        ("csv", make_csv),
        ("json", make_json),
        ("jsonl", make_json),
        ("xlsx", make_xlsx),
        ("jsonl.gz", make_packed),
        ("parquet.zst", make_zstd),
        ("batch.jsonl", make_batch),
        ("shaped.jsonl", make_shaped),
    ],
)
def test_mutated_inputs_never_end_in_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    suffix: str,
    make: Callable[[random.Random], bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    codes: dict[int, int] = {}
    for case in range(CASES):
        chance = random.Random(f"{suffix} {case}")
        path = tmp_path / f"case-{case}.{suffix}"
        path.write_bytes(make(chance))
        flags = chance.choice(FLAGS)
        try:
            answer = call(capsys, "run", path.name, *RUN, *flags)
        except Exception as exc:
            raise AssertionError(f"{path} with {flags} ended in {exc!r}") from exc
        assert answer.code in ALLOWED, f"{path} with {flags}: {answer}"
        assert "Traceback" not in answer.err, f"{path} with {flags}: {answer.err}"
        if answer.code in (0, 3):
            directory = json.loads(answer.out)["directory"]
            assert call(capsys, "verify", directory, "-q").code == 0, f"{path} with {flags}"
        else:
            assert path.name in answer.err or "column" in answer.err, f"it names nothing: {answer.err}"
        codes[answer.code] = codes.get(answer.code, 0) + 1
    assert min(codes.get(0, 0), codes.get(2, 0)) > CASES // 20, f"one-sided: {codes}"
