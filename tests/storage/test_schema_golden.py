"""The columns of the output are pinned to the output's format: neither changes without the other."""

import hashlib
from dataclasses import fields

import pyarrow as pa
import pytest

from synthia_batch import FinishedSample
from synthia_batch.job.identity import OUTPUT_FORMAT
from synthia_batch.results.read.failures import FailedSample
from synthia_batch.storage.parts import schema
from synthia_batch.storage.parts.options import WRITE_OPTIONS
from synthia_batch.storage.parts.schema import OutputColumn, data_schema, failed_schema, list_optional

PINNED = {4: "3d4483333f9d0acb"}
"""The digest of all columns by output format. Lines are added, never changed."""
LATER = {"messages_json": "fe2063c972f4e4fb", "prefill": "9659e745e779f724", "candidates": "c0a475ed2830b31b"}
"""Optional columns that came later, by the digest of their own line. Only a job with a key that earlier
versions did not have has them, so no run of theirs can lack them: they need no new format."""
SETTINGS = {"flags": ["empty"], "sampling": {"logprobs": 0}}


def describe_schema() -> str:
    every = [(), *((name,) for name in list_optional(SETTINGS)), list_optional(SETTINGS)]
    lines = [f"data {optional}: {list_fields(data_schema((), optional))}" for optional in every]
    lines += [f"failed: {list_fields(failed_schema())}"]
    lines += [
        f"{one.name}: {one.present_if} {one.meaning}" for one in schema.DATA_COLUMNS if one.name not in LATER
    ]
    return "\n".join([*lines, f"dictionaries: {WRITE_OPTIONS['use_dictionary']}"])


def list_fields(columns: pa.Schema) -> list[str]:
    return [f"{column.name} {column.type} {column.nullable}" for column in columns]


def check_pin() -> None:
    digest = hashlib.sha256(describe_schema().encode()).hexdigest()[:16]
    new = max(PINNED) + 1
    assert PINNED.get(OUTPUT_FORMAT) == digest, (
        "the output's columns changed, so a resumed run would mix two kinds of parts: raise OUTPUT_FORMAT in "
        f"synthia_batch/job/identity.py to {new}, and add {new}: {digest!r} to PINNED in "
        "tests/storage/test_schema_golden.py; do not change the lines that are there"
    )


def test_the_columns_are_those_of_the_output_format() -> None:
    check_pin()


def test_optional_columns_that_came_later_are_pinned_too() -> None:
    later = [column for column in schema.DATA_COLUMNS if column.name in LATER]
    lines = {one.name: f"{one.type} {one.present_if} {one.meaning}" for one in later}
    assert {name: hashlib.sha256(line.encode()).hexdigest()[:16] for name, line in lines.items()} == LATER


@pytest.mark.parametrize("table", ["DATA_COLUMNS", "FAILED_COLUMNS"])
def test_a_new_column_needs_a_new_output_format(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    added: OutputColumn[schema.DataRecord] = OutputColumn("x", pa.string(), lambda *_: "", "a new one")
    monkeypatch.setattr(schema, table, (*getattr(schema, table), added))
    with pytest.raises(AssertionError, match=f"raise OUTPUT_FORMAT .* to {OUTPUT_FORMAT + 1}, and add"):
        check_pin()


def test_the_public_samples_have_every_column() -> None:
    finished = {field.name for field in fields(FinishedSample)}
    assert finished == {column.name for column in schema.DATA_COLUMNS} | {"kept"}
    named = {"source_file": "file", "source_line": "line"}
    failed = {named.get(name, name) for name in schema.FAILED_NAMES if name != "messages"}
    assert {field.name for field in fields(FailedSample)} == failed


@pytest.mark.parametrize(
    ("settings", "optional"),
    [
        ({}, ()),
        ({"flags": (), "sampling": {"logprobs": None}}, ()),
        ({"flags": ["empty"], "sampling": {}}, ("flags",)),
        ({"flags": {"names": ["empty"]}, "sampling": {"logprobs": 0}}, ("flags", "logprobs")),
    ],
)
def test_optional_columns_are_those_of_a_jobs_values_or_identity(
    settings: dict[str, object], optional: tuple[str, ...]
) -> None:
    assert list_optional(settings) == optional
