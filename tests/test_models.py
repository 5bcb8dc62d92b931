"""Finding models and reading what their files say."""

import json
from pathlib import Path
from typing import Any

import pytest

from synthia_batch.digest import DigestCache
from synthia_batch.errors import ModelUnavailable
from synthia_batch.models.locate import digest_model, locate_model, read_model_facts


def make_model(path: Path, **files: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    contents = {"config.json": {"max_position_embeddings": 4096}, "tokenizer.json": {}} | files
    for name, value in contents.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (path / name).write_text(text)
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_a_directory_is_a_model_by_its_config(tmp_path: Path) -> None:
    model = make_model(tmp_path / "Synthia-7B")
    located = locate_model(str(model), None)
    assert (located.name, located.path, located.repo_id) == ("Synthia-7B", model, None)
    (model / "config.json").unlink()
    with pytest.raises(ModelUnavailable, match="no config"):
        locate_model(str(model), None)


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no such directory"):
        locate_model(str(tmp_path / "nowhere"), None)


def test_a_name_that_the_hub_cannot_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable, match="not a Hub name"):
        locate_model("no/such/model/name", None)


def test_a_model_in_the_hubs_cache_is_found_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--migtissera--Synthia-7B"
    make_model(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    located = locate_model("migtissera/Synthia-7B", None)
    assert (located.name, located.repo_id, located.revision) == (
        "migtissera/Synthia-7B", "migtissera/Synthia-7B", commit,
    )  # fmt: skip
    with pytest.raises(ModelUnavailable, match="the Hub did not give it"):
        locate_model("migtissera/Synthia-13B", None)


def test_facts_come_from_the_files(tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "m",
        **{
            "chat_template.jinja": "from the file",
            "tokenizer_config.json": {"chat_template": "from the config", "bos_token": {"content": "<s>"}},
            "special_tokens_map.json": {"eos_token": "</s>"},
            "generation_config.json": {"temperature": 0.6, "max_new_tokens": 99, "do_sample": True},
        },
    )
    facts = read_model_facts(model)
    assert facts.chat_template == "from the file"
    assert facts.max_model_len == 4096
    assert facts.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert facts.generation == {"temperature": 0.6, "max_tokens": 99}
    (model / "chat_template.jinja").unlink()
    assert read_model_facts(model).chat_template == "from the config"


def test_one_of_several_templates_is_the_default(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    model = make_model(tmp_path / "m", **{"tokenizer_config.json": {"chat_template": templates}})
    assert read_model_facts(model).chat_template == "yes"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", **{"tokenizer_config.json": "{"})
    with pytest.raises(ModelUnavailable, match=r"tokenizer_config\.json"):
        read_model_facts(model)


def test_digests_change_with_weights_and_tokenizer_each_by_itself(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    cache = DigestCache(tmp_path / "cache")
    before = digest_model(model, cache)
    (model / "README.md").write_text("no part of the identity")
    assert digest_model(model, cache) == before
    (model / "model.safetensors").write_bytes(b"other weights")
    weights = digest_model(model, cache)
    assert weights["weights"] != before["weights"]
    assert weights["tokenizer"] == before["tokenizer"]
    (model / "tokenizer.json").write_text("[]")
    assert digest_model(model, cache)["tokenizer"] != before["tokenizer"]


def test_a_hub_blob_is_known_by_its_name_without_being_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"x")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(blob)
    before = digest_model(model, DigestCache(tmp_path / "cache"))
    blob.write_bytes(b"not looked at")
    assert digest_model(model, DigestCache(tmp_path / "cache2")) == before
