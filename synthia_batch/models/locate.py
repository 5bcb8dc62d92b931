"""From a model's name to a directory with its files, and what those files say about it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.digest import DigestCache, digest_file, digest_json
from synthia_batch.errors import ModelUnavailable
from synthia_batch.models.demo import prepare_demo_model

DEMO_MODEL = "demo"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedModel:
    """A model's directory, and where on the Hub it came from, if it did.

    `revision` is the commit that the files are of.
    """

    name: str
    path: Path
    repo_id: str | None
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's files say.

    `max_model_len` is in tokens, None where config.json does not say. `special_tokens` are what a
    chat template may name. `generation` are the sampling values that the model recommends.
    """

    max_model_len: int | None
    chat_template: str | None
    special_tokens: Mapping[str, str]
    generation: Mapping[str, Any]
    tokenizer_path: Path


def locate_model(name: str, revision: str | None) -> LocatedModel:
    """Return where the model `name` is, made or downloaded first where it is not there yet.

    Raises:
        ModelUnavailable: There is no such directory or repository, or it cannot be reached.
    """
    if name == DEMO_MODEL:
        return LocatedModel(
            name="SmolLM2-135M-Instruct", path=prepare_demo_model(), repo_id=None, revision=None
        )
    path = Path(name).expanduser()
    if path.is_dir():
        path = path.resolve()
        if not (path / "config.json").is_file():
            raise ModelUnavailable(f"{path}: no config.json; name a directory that holds a model")
        return LocatedModel(name=path.name, path=path, repo_id=None, revision=None)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelUnavailable(f"{name}: no such directory; name an existing one, or a Hub repository")
    return _download(name, revision)


def read_model_facts(path: Path) -> ModelFacts:
    """Return what the files in the model directory `path` say.

    Raises:
        ModelUnavailable: A file cannot be read, or there is no tokenizer to be had.
    """
    from synthia_batch.models.tokenizer_file import find_tokenizer_file

    config = _read_json(path / "config.json")
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    text_config = config.get("text_config") or config
    return ModelFacts(
        max_model_len=text_config.get("max_position_embeddings"),
        chat_template=_find_template(path, tokenizer_config),
        special_tokens=_find_special_tokens(path, tokenizer_config),
        generation=_read_generation(path),
        tokenizer_path=find_tokenizer_file(path),
    )


def digest_model(
    path: Path, cache: DigestCache, on_file: Callable[[Path], None] | None = None
) -> dict[str, str]:
    """Return the digests of a model's `weights` (its config with them) and of its `tokenizer`.

    A file that the Hub's cache keeps under its SHA-256 is not read: the name says it.
    """
    weights: dict[str, str] = {}
    tokenizer: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        target = tokenizer if file.name in _TOKENIZER_FILES else weights
        if target is tokenizer or file.suffix in _WEIGHT_SUFFIXES or file.suffix in (".json", ".py"):
            if on_file is not None:
                on_file(file)
            target[file.name] = _digest(file, cache)
    return {"weights": digest_json(weights), "tokenizer": digest_json(tokenizer)}


def _digest(file: Path, cache: DigestCache) -> str:
    blob = file.resolve()
    if file.is_symlink() and blob.parent.name == "blobs" and len(blob.name) == 64:
        return f"sha256:{blob.name}"
    return digest_file(file, cache)


def _download(name: str, revision: str | None) -> LocatedModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES)))
    except HFValidationError as exc:
        raise ModelUnavailable(f"--model {name}: no such directory, and not a Hub name: {exc}") from exc
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise ModelUnavailable(
            f"--model {name}: not a directory here, and the Hub did not give it: {exc}; "
            "check the name, the network and HF_TOKEN, or run without --model for the embedded one"
        ) from exc
    # A snapshot's directory is named after its commit.
    return LocatedModel(name=name, path=path, repo_id=name, revision=path.name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ModelUnavailable(f"{path}: cannot be read: {exc}; fetch the model again") from exc
    return value if isinstance(value, dict) else {}


def _find_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the chat template: a file of its own goes before the tokenizer's config."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template") or _read_json(path / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _find_special_tokens(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for source in (_read_json(path / "special_tokens_map.json"), tokenizer_config):
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens[name] = text
    return tokens


def _read_generation(path: Path) -> dict[str, Any]:
    config = _read_json(path / "generation_config.json")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    said = {name: config[name] for name in names if config.get(name) is not None}
    if config.get("max_new_tokens"):
        said["max_tokens"] = config["max_new_tokens"]
    return said
