"""`schema`: what an editor is told of job files."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT, Command
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from synthia_batch.job.loading.json_schema import make_schema

SCHEMA = make_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


def list_faults(job: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in VALIDATOR.iter_errors(job)
    ]


def list_properties(section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from section["properties"].items()
    for other in section.get("$defs", {}).values():
        yield from list_properties(other)


def test_the_command_prints_a_schema_of_the_dialect_that_it_names(synthia: Command) -> None:
    done = synthia("schema")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == SCHEMA
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(printed)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_file_that_is_here_fits(path: Any) -> None:
    assert list_faults(YAML(typ="safe").load(path)) == []


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"input": {"path": "a", "limit": "1.5M"}, "system": "none", "sampling": {"stop": "x"}},
        {"deadline": "7h30m", "stop_at": "7:00", "max_failures": "0.5%", "notify": "json://x"},
        {"deadline": 90, "max_failures": "2K", "model": {"max_model_len": "32K"}, "metrics_port": 9400},
        {"engine": {"kind": "scripted", "latency_ms": 3}, "system": ["a", "b"], "max_failures": 0},
    ],
)
def test_what_people_type_fits(job: dict[str, Any]) -> None:
    assert list_faults(job) == []


@pytest.mark.parametrize(
    ("job", "fault"),
    [
        (
            {"sampling": {"temprature": 1}},
            "sampling: Additional properties are not allowed ('temprature' was",
        ),
        ({"sede": 1}, ": Additional properties are not allowed ('sede' was unexpected)"),
        ({"determinism": "slow"}, "determinism: 'slow' is not one of ['strict', 'fast']"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p: 2 is greater than the maximum of 1"),
        ({"seed": -1}, "seed: -1 is less than the minimum of 0"),
        ({"deadline": "soon"}, "deadline: 'soon' is not valid under any of the given schemas"),
        ({"stop_at": "25:00"}, "stop_at: '25:00' is not valid"),
        ({"max_failures": "%"}, "max_failures: '%' is not valid"),
        ({"input": {"limit": 0}}, "input.limit: 0 is not valid"),
        ({"metrics_port": 0}, "metrics_port: 0 is not valid"),
        ({"input": {"columns": {"a": {"choice": "dry"}}}}, "input.columns.a.choice: 'dry' is not valid"),
    ],
)
def test_what_a_run_refuses_does_not(job: dict[str, Any], fault: str) -> None:
    assert any(fault in found for found in list_faults(job)), list_faults(job)


def test_every_key_is_described_and_no_constraint_is_in_words_of_our_library() -> None:
    # A section is described where it is defined.
    keys = [(name, entry) for name, entry in list_properties(SCHEMA) if "$ref" not in entry]
    assert [name for name, entry in keys if not entry.get("description")] == []
    assert all(section["description"] for section in SCHEMA["$defs"].values())
    assert not any("\n" in entry["description"] for _, entry in keys)
    words = {word for _, entry in list_properties(SCHEMA) for word in entry}
    assert words <= {
        "$ref", "anyOf", "default", "description", "enum", "type", "items", "format", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "patternProperties", "pattern", "additionalProperties",
    }  # fmt: skip
