"""Finding models and reading what their files say."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from synthia_batch.core.digest import _HASHES, DigestCache, digest_file, digest_json
from synthia_batch.core.telemetry import PRIVACY
from synthia_batch.errors import ModelUnavailable
from synthia_batch.models import tokenizer_file
from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.models.locate import digest_model, locate_model
from synthia_batch.models.prompts.tokenizer import FastTokenizer
from synthia_batch.models.tokenizer_file import find_tokenizer_file

EMPTY_WEIGHTS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without tensors."""


def make_model(path: Path, **files: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    contents = {"config.json": {"max_position_embeddings": 4096}, "tokenizer.json": {}} | files
    for name, value in contents.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (path / name).write_text(text)
    (path / "model.safetensors").write_bytes(EMPTY_WEIGHTS)
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
    with pytest.raises(ModelUnavailable, match="not available from the Hub"):
        locate_model("migtissera/Synthia-13B", None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A Hub with one repository, whose files are in the dictionary returned."""
    files: dict[str, bytes] = {"config.json": b"{}", "tokenizer.json": b"{}", "original/model.bin": b"no"}

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        assert not options["local_files_only"]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            path = tmp_path / "snapshot" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[file])
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("synthia_batch.models.hub.find_network_fault", lambda: None)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *args, **options: list(files))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return files


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.pt", "training_args.bin"], ["model.pt"]),
    ],
)
def test_weights_are_fetched_in_the_one_kind_that_an_engine_takes(
    hub: dict[str, bytes], offered: list[str], taken: list[str]
) -> None:
    hub.update(dict.fromkeys(offered, b"weights"))
    path = locate_model("migtissera/Synthia-7B", None).path
    fetched = {file.name for file in path.iterdir() if file.is_file()}
    assert fetched == {"config.json", "tokenizer.json", *taken}


def test_a_repository_without_weights_is_refused(hub: dict[str, bytes]) -> None:
    hub["training_args.bin"] = b"no weights"
    hub["model.Q4.gguf"] = b"not for these engines"
    with pytest.raises(ModelUnavailable, match="no weights"):
        locate_model("migtissera/Synthia-7B", None)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", **{"training_args.bin": "no weights"})
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="no weights"):
        locate_model(str(model), None)
    (model / "pytorch_model.bin").write_bytes(b"weights")
    assert locate_model(str(model), None).path == model


def test_only_the_weights_that_an_engine_takes_make_the_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    before = digest_model(model, DigestCache(tmp_path / "cache"))
    (model / "pytorch_model.bin").write_bytes(b"another program fetched it into the same cache")
    (model / "training_args.bin").write_bytes(b"no weights")
    assert digest_model(model, DigestCache(tmp_path / "cache")) == before
    (model / "model.safetensors").unlink()
    assert digest_model(model, DigestCache(tmp_path / "cache")) != before


def test_the_hubs_telemetry_is_off_before_its_library_is_there(tmp_path: Path) -> None:
    probe = (
        "import os, sys\n"
        "from synthia_batch.errors import ModelUnavailable\n"
        "from synthia_batch.models.locate import locate_model\n"
        "try: locate_model('no/such/model/name', None)\n"
        "except ModelUnavailable: pass\n"
        "from huggingface_hub import constants\n"
        "sys.exit(not constants.HF_HUB_DISABLE_TELEMETRY or os.environ['RAY_USAGE_STATS_ENABLED'] != '0')"
    )
    told = {name: value for name, value in os.environ.items() if name not in PRIVACY}
    subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, env=told, check=True)


def test_fine_tunes_that_share_a_vocabulary_get_their_own_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<|end|>": 3}
    found = []
    for added in ("<|first|>", "<|second|>"):
        model = make_model(
            tmp_path / added.strip("<|>"),
            **{
                "vocab.json": vocabulary,
                "merges.txt": "#version: 0.2\na b\n",
                "config.json": {"model_type": "gpt2"},
                "tokenizer_config.json": {
                    "tokenizer_class": "GPT2Tokenizer",
                    "unk_token": "<|end|>",
                    "bos_token": "<|end|>",
                    "eos_token": "<|end|>",
                    "added_tokens_decoder": {"4": {"content": added, "special": True}},
                },
            },
        )
        (model / "tokenizer.json").unlink()
        found.append(find_tokenizer_file(model))
        assert added in FastTokenizer(found[-1])._tokenizer.get_vocab()
        assert find_tokenizer_file(model) == found[-1]
        assert sorted(path.name for path in found[-1].parent.iterdir() if path.name != "lock") == [
            "tokenizer.json"
        ]
    assert found[0] != found[1]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "another")
    monkeypatch.setattr(tokenizer_file, "_convert", lambda model: b"{}")
    assert find_tokenizer_file(tmp_path / "first") not in found


def test_a_torn_write_leaves_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizer_file, "_convert", lambda model: b"{}")
    model = make_model(tmp_path / "m", **{"tokenizer.model": "pieces"})
    (model / "tokenizer.json").unlink()

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ModelUnavailable, match="the disk is broken"):
        find_tokenizer_file(model)
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left <= {"lock"}


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


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json", "special_tokens_map.json"])
def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "m")
    (model / name).write_bytes(b'"caf\xe9"')
    with pytest.raises(ModelUnavailable, match=re.escape(name)):
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


def link_blob(model: Path, name: str, content: bytes, digest: str) -> Path:
    """Put a file of the model where the Hub's cache has it; return the blob."""
    blob = model.parent / "blobs" / digest
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(content)
    (model / name).unlink()
    (model / name).symlink_to(blob)
    return blob


def test_a_hub_blob_is_known_by_its_name_and_read_once_for_each_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "m")
    digest = hashlib.sha256(b"weights").hexdigest()
    blob = link_blob(model, "model.safetensors", b"weights", digest)
    os.utime(blob, (1, 1))
    cache = DigestCache(tmp_path / "cache", read_clock=lambda: time.time() + 60)
    before = digest_model(model, cache)
    read: list[Path] = []
    monkeypatch.setitem(_HASHES, "sha256", lambda path: read.append(path) or "never")
    assert digest_model(model, cache) == before
    assert read == []
    assert before["weights"] == digest_json(
        {"config.json": digest_file(model / "config.json"), "model.safetensors": f"sha256:{digest}"}
    )


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("model.safetensors", hashlib.sha256(b"weights").hexdigest()),
        ("tokenizer.json", hashlib.sha1(b"blob 7\0weights").hexdigest()),
    ],
)
def test_a_damaged_hub_blob_is_refused(tmp_path: Path, name: str, digest: str) -> None:
    model, cache = make_model(tmp_path / "m"), DigestCache(tmp_path / "cache")
    blob = link_blob(model, name, b"weights", digest)
    digest_model(model, cache)
    blob.write_bytes(b"wEights")
    with pytest.raises(ModelUnavailable, match=f"{name} is damaged in the Hub's cache; remove .*{digest}"):
        digest_model(model, cache)
