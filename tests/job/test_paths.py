"""Path-valued keys: found by walking the schema, and anchored both when read and when saved."""

from pathlib import Path
from typing import Any, get_args

import pytest

from synthia_batch.job.dotted import flatten, merge_values, nest
from synthia_batch.job.keys import ANY_NAME, Key, walk_keys
from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.layer import look_up
from synthia_batch.job.markers import Anchored
from synthia_batch.job.schema import Job
from synthia_batch.storage.saved_job import read_job, write_job

ANCHORED = [key for key in walk_keys() if key.find(Anchored)]
TEXTS = {"input.path": "file", "system": "@file", "model.name": "./file"}
"""Keys that hold other texts as well, with one that names a file."""


def holds_path(annotation: Any) -> bool:
    return annotation is Path or any(map(holds_path, get_args(annotation)))


def make_value(key: Key) -> tuple[Any, str]:
    """Return a value of `key` that names a file, and the text of it that does."""
    text = TEXTS.get(key.name, "file")
    return ({"a": text} if key.name == "lora.adapters" else text), text


def check_anchored(value: Any, folder: Path) -> None:
    found = flatten({"value": value})
    texts = [text for entry in found.values() for text in (entry if isinstance(entry, list) else [entry])]
    assert [text.lstrip("@") for text in texts] == [str(folder / "file")]


def test_every_key_of_a_path_type_is_anchored() -> None:
    paths = {key.name for key in walk_keys() if holds_path(key.field.annotation)}
    assert {"structured.json_schema", "structured.grammar", "engine.call_log", "lora.adapters"} <= paths
    assert {key.name for key in ANCHORED} == paths | TEXTS.keys()


@pytest.mark.parametrize("key", ANCHORED, ids=lambda key: key.name)
def test_a_job_file_names_it_relative_to_itself(key: Key, tmp_path: Path) -> None:
    value, text = make_value(key)
    name = key.name.replace(ANY_NAME, "mine")
    lines = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(name.split(".")))
    entry = f"{{a: '{text}'}}" if isinstance(value, dict) else f"'{text}'"
    (tmp_path / "job.yaml").write_text(f"{lines.rstrip()} {entry}\n")
    check_anchored(look_up(read_job_file(tmp_path / "job.yaml").values, name), tmp_path)


@pytest.mark.parametrize("key", ANCHORED, ids=lambda key: key.name)
def test_a_saved_job_holds_it_absolute(key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = key.name.replace(ANY_NAME, "mine")
    rows = {"path": "q.jsonl"} if name == key.name else {"rows": 3}
    job = Job.model_validate(merge_values({"input": rows}, nest(name, make_value(key)[0])))
    write_job(tmp_path / "job.json", job)
    saved = read_job(tmp_path / "job.json", tmp_path / "file")
    assert saved is not None
    check_anchored(look_up(saved.values, name), tmp_path)


@pytest.mark.parametrize("text", ["-", "s3://b/rows", "https://host/a.jsonl", "hf://datasets/a/b"])
def test_an_input_that_is_no_file_stays_as_it_is(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(f"input:\n  path: ['{text}', q.jsonl]\n")
    values = read_job_file(tmp_path / "job.yaml").values
    assert values["input"]["path"] == [text, str(tmp_path / "q.jsonl")]
    write_job(tmp_path / "job.json", Job.model_validate(values))
    saved = read_job(tmp_path / "job.json", tmp_path)
    assert saved is not None
    assert saved.values["input"] == values["input"]


def test_a_name_on_the_hub_a_system_name_and_a_store_stay_as_they_are(tmp_path: Path) -> None:
    text = "model: {name: org/mine}\nsystem: [synthia, '@me.txt']\noutput: s3://bucket/run\n"
    (tmp_path / "job.yaml").write_text(text)
    values = read_job_file(tmp_path / "job.yaml").values
    assert values["model"]["name"] == "org/mine"
    assert values["system"] == ["synthia", f"@{tmp_path / 'me.txt'}"]
    assert values["output"] == "s3://bucket/run"
