"""Jobs: layers, resolution, identity."""

import datetime
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import read_bytes_of_data, run_probe, write_jsonl

from synthia_batch import Job, run_job
from synthia_batch.core.console import Display
from synthia_batch.errors import SampleRefused, UsageError
from synthia_batch.job.identity import compare_identities, fingerprint
from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.merge import Layer, merge_layers, parse_assignment, read_environment
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.models.prompts.formats import PlainChatFormat
from synthia_batch.operations.forecast import forecast_job
from synthia_batch.operations.settings import list_settings
from synthia_batch.runner.directory.reopen import FailureChoice
from synthia_batch.runner.directory.session import lock_run
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.retry import retry_failed
from synthia_batch.runner.run import run_resolved_job


def resolve(source: Path, **said: Any) -> ResolvedJob:
    values = {"engine": {"kind": "scripted"}, "pool": {"kind": "local"}} | said
    values["input"] = {"path": str(source), **said.get("input", {})}
    return resolve_job([Layer(origin="flag", values=values)])


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
    assert "sed (job file x.yaml): unknown key. Did you mean 'seed'?" in text
    assert "sampling.top_p (job file x.yaml)" in text
    assert "input: not set" in text


def test_environment_and_assignments_are_yaml() -> None:
    layer = read_environment(
        {"SYNTHIA_BATCH_SAMPLING__STOP": "[a, b]", "SYNTHIA_BATCH_SEED": "7", "HOME": "/"}
    )
    assert layer.values == {"sampling": {"stop": ["a", "b"]}, "seed": 7}
    assert parse_assignment("engine.enforce_eager=true") == {"engine": {"enforce_eager": True}}
    with pytest.raises(UsageError, match="key=value"):
        parse_assignment("seed")
    with pytest.raises(UsageError, match="not a YAML value"):
        parse_assignment("engine.sizes=[1, 2")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("system=@sys.txt", "@sys.txt"),
        ("system=Note: be kind", "Note: be kind"),
        ("system=[synthia, none]", ["synthia", "none"]),
        ("model.revision=1234", "1234"),
        ("model.revision=1e5", "1e5"),
        ("model.revision='1234'", "1234"),
        ("model.revision=null", None),
        ("model.dtype=float32", "float32"),
        ("name=2024-01-01", "2024-01-01"),
        ("sampling.stop=7", "7"),
        ("sampling.top_k=7", 7),
    ],
)
def test_a_key_that_wants_text_takes_it_as_it_is_typed(assignment: str, value: Any) -> None:
    section: Any = parse_assignment(assignment)
    for part in assignment.partition("=")[0].split("."):
        section = section[part]
    assert section == value
    assert read_environment({"SYNTHIA_BATCH_SYSTEM": "@sys.txt"}).values == {"system": "@sys.txt"}


def test_the_address_in_the_environment_goes_before_the_job_files() -> None:
    layer = read_environment({"RAY_ADDRESS": "ray:1"})
    job_file = Layer(origin="file", values={"input": {"path": "a"}, "pool": {"ray_address": "ray:2"}})
    merged = merge_layers([layer, job_file])
    assert (merged.job.pool.ray_address, merged.origins["pool.ray_address"]) == (
        "ray:1",
        "environment RAY_ADDRESS",
    )
    ours = {"RAY_ADDRESS": "ray:1", "SYNTHIA_BATCH_POOL__RAY_ADDRESS": "ray:3"}
    assert read_environment(ours).values == {"pool": {"ray_address": "ray:3"}}
    assert read_environment({"RAY_ADDRESS": ""}).values == {}


ODD: list[tuple[str, dict[str, Any]]] = [
    ("sampling.repetition_penalty", {"sampling": {"repetition_penalty": float("inf")}}),
    ("sampling.temperature", {"sampling": {"temperature": True}}),
    ("sampling.top_k", {"sampling": {"top_k": True}}),
    ("sampling.stop", {"sampling": {"stop": ""}}),
    ("sampling.stop", {"sampling": {"stop": ["a", "\udcff"]}}),
    ("deadline", {"deadline": float("inf")}),
    ("engine.foo", {"engine": {"foo": datetime.date(2024, 1, 1)}}),
    ("engine.foo", {"engine": {"foo": [{"a": float("nan")}]}}),
    ("engine.foo", {"engine": {"foo": [{1: "a"}]}}),
    ("system", {"system": ["\udcff \udcfe"]}),
    ("model.name", {"model": {"name": "a\udcff"}}),
    ("input.prompt_column", {"input": {"path": "a", "prompt_column": "\udcff"}}),
]


@pytest.mark.parametrize(("key", "values"), ODD, ids=ascii)
def test_a_value_that_no_job_can_have_is_refused_by_its_key(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        merge_layers([Layer(origin="flag", values={"input": {"path": "a"}} | values)])
    assert f"  {key}" in str(refused.value)
    assert "(flag)" in str(refused.value)


def test_a_value_that_holds_itself_is_refused() -> None:
    for text in ("&a {b: *a}", "&a [*a]"):
        with pytest.raises(UsageError):
            merge_layers([Layer(origin="flag", values=parse_assignment(f"engine.x={text}"))])


def test_paths_in_a_job_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    file = tmp_path / "jobs" / "a.yaml"
    file.write_text("input: {path: ../in/q.jsonl}\noutput: ../out\nsystem: ['@persona.txt', none]\n")
    values = read_job_file(file).values
    assert values["input"]["path"] == str(tmp_path / "in" / "q.jsonl")
    assert values["output"] == str(tmp_path / "out")
    assert values["system"] == [f"@{tmp_path / 'jobs' / 'persona.txt'}", "none"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("./mine", "jobs/mine"),
        ("../mine", "mine"),
        ("org/there", "jobs/org/there"),
        ("org/elsewhere", None),
        ("demo", None),
    ],
)
def test_a_model_in_a_job_file_may_lie_beside_it(tmp_path: Path, said: str, found: str | None) -> None:
    for name in ("org/there", "demo"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    file = tmp_path / "jobs" / "a.yaml"
    file.write_text(f"model: {{name: {said}}}\nengine: {{call_log: calls}}\n")
    values = read_job_file(file).values
    assert values["model"]["name"] == (str(tmp_path / found) if found else said)
    assert values["engine"]["call_log"] == str(tmp_path / "jobs" / "calls")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    file = tmp_path / "a.yaml"
    file.write_text("input: {path: ~/q.jsonl}\noutput: ~/out\n")
    flags = Layer(origin="flag", values={"input": {"path": "~/q.jsonl"}, "output": "~/out"})
    for layer in (read_job_file(file), flags):
        job = merge_layers([layer]).job
        assert (job.input.path, job.output) == ("/home/someone/q.jsonl", Path("/home/someone/out"))


def test_a_plan_shows_what_will_run_beside_what_was_said(source: Path) -> None:
    settings = list_settings(resolve(source, prompt_format="synthia"))
    assert settings["sampling.stop"] == {
        "value": [], "origin": "default", "resolved": ["USER:"], "resolved_by": "the prompt format",
    }  # fmt: skip
    assert settings["model.max_model_len"]["resolved"] == 8192
    assert settings["model.name"]["resolved"] == "scripted"
    assert settings["input.prompt_column"]["resolved"] == "prompt"
    assert settings["pool.workers"]["resolved"] == 1
    assert settings["engine.device"]["resolved"] in ("cpu", "cuda")
    assert "resolved" not in settings["prompt_format"]
    assert "resolved" not in settings["seed"]


def test_a_forecast_bounds_the_output_by_what_there_is_room_for(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "x" * n} for n in (10, 60, 300)])
    said = {"model": {"max_model_len": 128}, "sampling": {"max_tokens": 50}, "system": "none"}
    forecast = forecast_job(resolve(source, num_samples=2, **said))
    tokens = forecast.prompt_tokens
    assert (tokens.refused, tokens.too_long) == (0, 2)
    frame = tokens.shortest - 10
    assert forecast.longest_output_tokens == 2 * (50 + min(50, 128 - 60 - frame))
    assert forecast.longest_output_tokens < 2 * 100


def test_a_forecast_tells_refused_prompts_from_long_ones(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: PlainChatFormat, messages: object, tools: object, kwargs: object) -> str:
        raise SampleRefused("prompt_not_expressible", "no")

    monkeypatch.setattr(PlainChatFormat, "write", refuse)
    forecast = forecast_job(resolve(source))
    assert (forecast.prompt_tokens.refused, forecast.prompt_tokens.too_long) == (1, 0)
    assert forecast.longest_output_tokens == 0


IDENTITY_CHANGES: list[dict[str, Any]] = [
    {"seed": 1},
    {"num_samples": 2},
    {"system": ["synthia"]},
    {"system": ["synthia", "none"]},
    {"system": ["none", "synthia"]},
    {"input": {"system_column": "persona"}},
    {"input": {"prompt_column": "persona"}},
    {"input": {"keep_columns": ["persona"]}},
    {"input": {"limit": 1}},
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


def test_the_order_of_system_messages_is_identity_as_ordinals_follow_it(source: Path) -> None:
    one, other = (resolve(source, system=names) for names in (["synthia", "none"], ["none", "synthia"]))
    assert one.fingerprint != other.fingerprint
    assert [name for name, _ in one.identity["system"]] == ["synthia", "none"]


NEUTRAL_CHANGES: list[dict[str, Any]] = [
    {"pool": {"kind": "local", "workers": 3}},
    {"engine": {"kind": "scripted", "max_num_seqs": 3, "latency_ms": 5}},
    {"max_failures": 3},
    {"max_failures": "1%"},
    {"deadline": "7h30m", "stop_at": "07:00"},
    {"metrics_port": 9400, "notify": ["json://localhost"]},
    {"name": "other"},
    # Defaults said aloud.
    {"input": {"prompt_column": "prompt", "keep_columns": []}},
    {"system": ["none"]},
    {"seed": 0, "model": {"max_model_len": 8192}, "sampling": {"temperature": 0.75}},
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


def test_a_run_resumed_under_other_names_writes_equal_bytes(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.jsonl"
    copy.write_bytes(source.read_bytes())
    fails = {"kind": "scripted", "fail_every": 1}

    def begin(job: ResolvedJob) -> None:
        with lock_run(job) as session:
            session.inspect()
            with session.begin():
                pass

    def finish(job: ResolvedJob) -> None:
        run_resolved_job(job, Display(quiet=True))

    for name, later in (("straight", source), ("renamed", copy)):
        output = str(tmp_path / name)
        begin(resolve(source, engine=fails, output=output))
        other = {} if later == source else {"name": "other"}
        finish(resolve(later, engine=fails, output=output, **other))
    straight, renamed = (read_bytes_of_data(tmp_path / name) for name in ("straight", "renamed"))
    assert straight == renamed
    assert any(name.startswith("failed/") for name in straight)


def test_an_input_whose_name_is_not_utf8_is_run_to_the_end(source: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/q\xff.jsonl"))
    odd.write_bytes(source.read_bytes())
    job = resolve(odd, engine={"kind": "scripted", "fail_every": 1}, output=str(tmp_path / "out"))
    assert run_resolved_job(job, Display(quiet=True)).failed == 1
    assert "q\\xff.jsonl" in (tmp_path / "out" / "README.md").read_text()
    assert list_settings(job)["input.path"]["value"].endswith("q\\xff.jsonl")


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    turns = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}]
    return write_jsonl(tmp_path / "talks.jsonl", [{"messages": turns, "persona": "Be kind."}])


def test_a_preset_names_no_system_message(source: Path, talks: Path) -> None:
    by_column = resolve(source, preset="synthia-7b", input={"system_column": "persona"})
    assert by_column.plan.system_column == "persona"
    assert not resolve(talks, preset="synthia-7b").plan.replace_own_system
    assert resolve(talks, preset="synthia-7b", system=["synthia"]).plan.replace_own_system
    with pytest.raises(UsageError, match="set only one of the two"):
        resolve(source, system=["synthia"], input={"system_column": "persona"})


def test_a_system_message_said_is_another_job_for_conversations_only(source: Path, talks: Path) -> None:
    preset = {"preset": "synthia-7b"}
    said = resolve(source, system=["synthia"], **preset)
    assert resolve(source, **preset).fingerprint == said.fingerprint
    assert resolve(talks, **preset).fingerprint != resolve(talks, system=["synthia"], **preset).fingerprint


def test_only_a_preset_brings_a_system_message_and_only_to_prompts(source: Path, talks: Path) -> None:
    def list_systems(path: Path, **values: Any) -> list[str]:
        return [system.name for system in resolve(path, **values).plan.systems]

    assert list_systems(source) == ["none"]
    assert list_systems(source, preset="chat") == ["none"]
    assert list_systems(source, preset="demo") == ["synthia"]
    assert list_systems(talks, preset="demo") == ["none"]


def test_rows_keep_their_own_system_messages_unless_told(talks: Path) -> None:
    def replaces(**values: Any) -> bool:
        return resolve(talks, **values).plan.replace_own_system

    assert not replaces()
    assert not replaces(system=["none"])
    assert replaces(system=["none"], replace_system=True)
    assert replaces(system=["synthia"])
    with pytest.raises(UsageError, match="--replace-system"):
        resolve(talks, system=["synthia", "none"])
    assert replaces(system=["synthia", "none"], replace_system=True)


def test_a_run_under_a_preset_can_be_retried(talks: Path, tmp_path: Path) -> None:
    engine = {"kind": "scripted", "fail_every": 1, "fail_while_missing": str(tmp_path / "mended")}
    job = resolve(talks, preset="synthia-7b", engine=engine, output=str(tmp_path / "out"))
    assert run_resolved_job(job, Display(quiet=True)).failed == 1
    (tmp_path / "mended").touch()
    retried = retry_failed(tmp_path / "out", FailureChoice(code=None), [], Display(quiet=True))
    assert retried.run is not None
    assert (retried.run.finished, retried.run.failed) == (1, 0)


def test_another_process_finds_the_same_identity(source: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_job import resolve\n"
        "print(resolve(Path(sys.argv[1])).fingerprint)"
    )
    assert run_probe(code, str(source)) == [resolve(source).fingerprint]


def test_identities_are_compared_field_by_field() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": None}
    now = {"a": {"b": 2, "c": [1]}, "e": 5}
    assert [str(difference) for difference in compare_identities(before, now)] == [
        "a.b: 1 before, 2 now",
        "e: None before, 5 now",
    ]
    assert fingerprint(before) == fingerprint(json.loads(json.dumps(before)))


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
