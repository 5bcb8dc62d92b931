"""Faults of a job in plain words: in Python, in a job file, and where there is no network."""

from pathlib import Path

import pytest
from conftest import Command, write_jsonl

from synthia_batch import Job, SynthiaBatchError, run_job
from synthia_batch.core import console, hub_network
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.errors import naming_fields
from synthia_batch.models import hub


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"input": {"path": "q"}, "num_sample": 1},
            "(argument): unknown key. Did you mean 'num_samples'?",
        ),
        ({"input": {"path": "q"}, "sampling": {"temprature": 1}}, "Did you mean 'temperature'?"),
        (
            {"input": {"path": "q"}, "determinism": "x"},
            "(argument): Input should be 'strict' or 'fast'",
        ),
        (
            {"input": {"path": "q"}, "num_samples": "many"},
            "(argument): Input should be a whole number",
        ),
        ({}, "input: not set"),
    ],
    ids=str,
)
def test_every_fault_of_a_job_in_python_is_an_error_of_this_package(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(SynthiaBatchError) as refused:
        Job(**values)  # type: ignore[arg-type]
    assert words in str(refused.value)
    assert "--" not in str(refused.value)
    assert str(refused.value).endswith("help(synthia_batch.Job) lists the fields")


def test_advice_about_flags_names_fields_when_it_is_given_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": "Which?"}, {"question": None}]
    source = {"path": str(write_jsonl(tmp_path / "q.jsonl", rows))}
    common = {"input": source, "engine": {"kind": "scripted"}, "pool": {"kind": "local"}}
    for values, words in (
        ({}, "; input.on_bad_row=fail sets bad rows aside"),
        ({"system": ["synthia", "synthia"]}, "system: synthia, synthia; name each system message once"),
        ({"sampling": {"guided_json": "{}"}}, "use structured.json_schema=FILE"),
        ({"model": {"name": str(tmp_path)}, "engine": {"kind": "openai"}}, "base_url http://127.0.0.1"),
    ):
        with pytest.raises(SynthiaBatchError) as refused:
            run_job(Job(**{**common, **values}))  # type: ignore[arg-type]
        assert words in str(refused.value)
        assert "--" not in str(refused.value)
    command = "`synthia-batch run --workers 3`, --workers 3, use --pool ray, --trust"
    with pytest.raises(SynthiaBatchError) as refused, naming_fields():
        raise UsageError(command)
    assert str(refused.value) == "`synthia-batch run --workers 3`, pool.workers=3, use pool.kind=ray, --trust"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (
            "input: {path: q}\nsampling:\n  seed: 1\n   top_p: 0.9\n",
            "4:9",
            "a key cannot stand here; put a space",
        ),
        (
            "input:\n  path: q\n sampling:\n  seed: 1\n",
            "3:2",
            "the line is not indented like those before it",
        ),
        ("input: {path: q}\nnum_samples\nseed: 1\n", "3:1", "a key without a colon"),
        ("input: {path: q}\nnum_samples: many\n", "2:14", "Input should be a whole number, got 'many'"),
    ],
)
def test_a_job_file_is_refused_in_plain_words_with_its_place(
    synthia: Command, tmp_path: Path, text: str, place: str, words: str
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    done = synthia("plan", "job.yaml")
    assert done.returncode == 2
    assert f"job.yaml:{place}: " in done.stderr
    assert words in done.stderr
    assert "block" not in done.stderr


def test_without_a_network_a_model_is_refused_in_one_line_and_no_retries(
    synthia: Command, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    done = synthia("run", "q.jsonl", "-m", "llama3", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "llama3" in line] == done.stderr.splitlines()[-1:]
    assert "Retrying" not in done.stderr


def test_a_network_that_answers_or_a_proxy_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert hub_network.find_network_fault() is not None
    assert hub.look_up("llama3", None).files is None
    monkeypatch.setattr(hub_network.urllib.request, "getproxies", lambda: {"http": "http://proxy:1"})
    assert hub_network.find_network_fault() is None


def test_a_notebook_is_drawn_on() -> None:
    kind = type("OutStream", (), {"__module__": "ipykernel.iostream"})
    assert console._is_notebook(kind())
    assert not console._is_notebook(open("/dev/null"))  # noqa: SIM115
