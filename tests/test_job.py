"""Jobs: layers, resolution, identity."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from synthia_batch import Job, run_job
from synthia_batch.display import Display
from synthia_batch.errors import UsageError
from synthia_batch.job.fingerprint import NOT_IDENTITY, compare_identities, fingerprint
from synthia_batch.job.layers import Layer, merge_layers, parse_assignment, read_environment, read_job_file
from synthia_batch.job.presets import list_presets, read_preset
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.resolve import resolve_job


def resolve(source: Path, **said: Any) -> ResolvedJob:
    values = {
        "input": {"path": str(source)},
        "engine": {"kind": "scripted"},
        "pool": {"kind": "local"},
    } | said
    return resolve_job([Layer(origin="flag", values=values)], print)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "persona": "Be kind."}])


def test_the_strongest_layer_wins_value_by_value() -> None:
    merged = merge_layers(
        [
            Layer(origin="flag", values={"input": {"path": "a"}, "sampling": {"top_k": 1}}),
            Layer(origin="file", values={"sampling": {"top_k": 2, "top_p": 0.5}}),
        ]
    )
    assert (merged.job.sampling.top_k, merged.origins["sampling.top_k"]) == (1, "flag")
    assert (merged.job.sampling.top_p, merged.origins["sampling.top_p"]) == (0.5, "file")
    assert merged.origins["sampling.temperature"] == "default"


def test_every_fault_of_a_job_is_named_with_its_origin() -> None:
    layer = Layer(origin="job file x.yaml", values={"sed": 1, "sampling": {"top_p": 3}})
    with pytest.raises(UsageError) as refused:
        merge_layers([layer])
    text = str(refused.value)
    assert "sed (job file x.yaml): there is no such key; did you mean seed?" in text
    assert "sampling.top_p (job file x.yaml)" in text
    assert "input: not said" in text


def test_environment_and_assignments_are_yaml() -> None:
    layer = read_environment(
        {"SYNTHIA_BATCH_SAMPLING__STOP": "[a, b]", "SYNTHIA_BATCH_SEED": "7", "HOME": "/"}
    )
    assert layer.values == {"sampling": {"stop": ["a", "b"]}, "seed": 7}
    assert parse_assignment("engine.enforce_eager=true") == {"engine": {"enforce_eager": True}}
    with pytest.raises(UsageError, match="key=value"):
        parse_assignment("seed")


def test_paths_in_a_job_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    file = tmp_path / "jobs" / "a.yaml"
    file.write_text("input: {path: ../in/q.jsonl}\noutput: ../out\nsystem: ['@persona.txt', none]\n")
    values = read_job_file(file).values
    assert values["input"]["path"] == str(tmp_path / "in" / "q.jsonl")
    assert values["output"] == str(tmp_path / "out")
    assert values["system"] == [f"@{tmp_path / 'jobs' / 'persona.txt'}", "none"]


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_a_valid_layer(name: str) -> None:
    job = merge_layers([Layer(origin="flag", values={"input": {"path": "q"}}), read_preset(name)]).job
    assert job.prompt_format == "synthia"


IDENTITY_CHANGES: list[dict[str, Any]] = [
    {"seed": 1},
    {"num_samples": 2},
    {"system": ["none"]},
    {"sampling": {"temperature": 0.0}},
    {"sampling": {"stop": ["x"]}},
    {"determinism": "fast"},
    {"prompt_format": "synthia"},
    {"model": {"max_model_len": 100}},
    {"engine": {"kind": "scripted", "fail_every": 3}},
]


@pytest.mark.parametrize("change", IDENTITY_CHANGES, ids=str)
def test_what_decides_about_the_output_is_identity(source: Path, change: dict[str, Any]) -> None:
    assert resolve(source).fingerprint != resolve(source, **change).fingerprint


NEUTRAL_CHANGES: list[dict[str, Any]] = [
    {"pool": {"kind": "local", "workers": 3}},
    {"engine": {"kind": "scripted", "max_num_seqs": 3, "latency_ms": 5}},
    {"max_failures": 3},
    {"deadline_seconds": 60},
    {"name": "other"},
]


@pytest.mark.parametrize("change", NEUTRAL_CHANGES, ids=str)
def test_what_does_not_decide_about_it_is_not(source: Path, change: dict[str, Any]) -> None:
    assert resolve(source).fingerprint == resolve(source, **change).fingerprint


def test_the_inputs_content_is_identity_and_its_name_is_not(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.read_bytes())
    before = resolve(source).fingerprint
    assert resolve(copy).fingerprint == before
    source.write_text('{"prompt": "Why not?"}\n')
    assert resolve(source).fingerprint != before


def test_another_process_finds_the_same_identity(source: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from test_job import resolve\n"
        "print(resolve(Path(sys.argv[1])).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(source), str(Path(__file__).parent)]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == resolve(source).fingerprint


def test_identities_are_compared_field_by_field() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": None}
    now = {"a": {"b": 2, "c": [1]}, "e": 5}
    assert [str(difference) for difference in compare_identities(before, now)] == [
        "a.b: 1 before, 2 now",
        "e: None before, 5 now",
    ]
    assert fingerprint(before) == fingerprint(json.loads(json.dumps(before)))


def test_each_exclusion_from_the_identity_has_a_reason() -> None:
    assert all(reason.strip() for reason in NOT_IDENTITY.values())


def test_the_api_runs_a_job(source: Path, tmp_path: Path) -> None:
    job = Job.model_validate(
        {
            "input": {"path": source, "system_column": "persona"},
            "engine": {"kind": "scripted"},
            "pool": {"kind": "local"},
            "output": tmp_path / "out",
        }
    )
    stream = io.StringIO()
    first = run_job(job, display=Display(stream=stream))
    second = run_job(job)
    assert (first.finished, first.made, first.drained) == (1, 1, None)
    assert (second.finished, second.made) == (1, 0)
    assert (tmp_path / "out" / "manifest.json").exists()
