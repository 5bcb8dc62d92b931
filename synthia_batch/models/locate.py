"""From a model's name to a directory with its files, and what those files say about it."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.digest import DigestCache, digest_file, digest_json
from synthia_batch.errors import ModelUnavailable
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.models.tokenizer_file import TOKENIZER_FILES, find_tokenizer_file
from synthia_batch.privacy import keep_private

DEMO_MODEL = "demo"
_HUB_WEIGHTS = (".safetensors", ".bin", ".pt")
"""The kinds of weights that a repository may have, the one that an engine takes first in front."""
_WEIGHTS = (*_HUB_WEIGHTS, ".gguf")
_NOT_WEIGHTS = frozenset(
    ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt")
)
"""What training leaves beside the weights; engines pass it over as well."""
_HUB_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.py")
"""What is fetched beside the weights."""


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
    `quantization` is the method that config.json names, None where the weights are not quantized.
    """

    max_model_len: int | None
    quantization: str | None
    chat_template: str | None
    special_tokens: Mapping[str, str]
    generation: Mapping[str, Any]
    tokenizer_path: Path


def locate_model(name: str, revision: str | None) -> LocatedModel:
    """Return where the model `name` is, made or downloaded first where it is not there yet.

    Raises:
        ModelUnavailable: There is no such directory or repository, it cannot be reached, or it has
            no weights.
    """
    keep_private()
    if name == DEMO_MODEL:
        return LocatedModel(
            name="SmolLM2-135M-Instruct", path=prepare_demo_model(), repo_id=None, revision=None
        )
    path = Path(name).expanduser()
    if path.is_dir():
        path = path.resolve()
        if not (path / "config.json").is_file():
            raise ModelUnavailable(f"{path}: no config.json; name a directory that holds a model")
        if _choose_weights(file.name for file in path.iterdir()) is None:
            raise ModelUnavailable(f"{path}: no weights ({', '.join(_WEIGHTS)}); fetch the model again")
        return LocatedModel(name=path.name, path=path, repo_id=None, revision=None)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelUnavailable(f"{name}: no such directory; name an existing one, or a Hub repository")
    return _download(name, revision)


def read_model_facts(path: Path) -> ModelFacts:
    """Return what the files in the model directory `path` say.

    Raises:
        ModelUnavailable: A file cannot be read, or there is no tokenizer to be had.
    """
    config = _read_json(path / "config.json")
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    text_config = config.get("text_config") or config
    return ModelFacts(
        max_model_len=text_config.get("max_position_embeddings"),
        quantization=_find_quantization(config) or _find_quantization(text_config),
        chat_template=_find_template(path, tokenizer_config),
        special_tokens=_find_special_tokens(path, tokenizer_config),
        generation=_read_generation(path),
        tokenizer_path=find_tokenizer_file(path),
    )


def _find_quantization(config: Mapping[str, Any]) -> str | None:
    # Some checkpoints of compressed-tensors have it under that second name.
    section = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(section, Mapping):
        return None
    method = section.get("quant_method")
    return str(method).lower() if method else "unknown"


def digest_model(
    path: Path, cache: DigestCache, on_file: Callable[[Path], None] | None = None
) -> dict[str, str]:
    """Return the digests of a model's `weights` (its config with them) and of its `tokenizer`.

    Of weights in several kinds only those count that an engine takes: what else has been fetched
    into a shared cache makes no other model.

    A file that the Hub's cache keeps under its SHA-256 is not read: the name says it.
    """
    weights: dict[str, str] = {}
    tokenizer: dict[str, str] = {}
    files = sorted(path.iterdir())
    kind = _choose_weights(file.name for file in files)
    for file in files:
        target = tokenizer if file.name in TOKENIZER_FILES else weights
        if target is tokenizer or _is_weight(file.name, kind) or file.suffix in (".json", ".py"):
            if on_file is not None:
                on_file(file)
            target[file.name] = _digest(file, cache)
    return {"weights": digest_json(weights), "tokenizer": digest_json(tokenizer)}


def _digest(file: Path, cache: DigestCache) -> str:
    blob = file.resolve()
    if file.is_symlink() and blob.parent.name == "blobs" and len(blob.name) == 64:
        return f"sha256:{blob.name}"
    return digest_file(file, cache)


def _choose_weights(names: Iterable[str]) -> str | None:
    """Return the suffix of the weights that an engine takes among the files `names`; None: there are none."""
    listed = list(names)
    return next((kind for kind in _WEIGHTS if any(_is_weight(name, kind) for name in listed)), None)


def _is_weight(name: str, kind: str | None) -> bool:
    """Whether the file `name`, at the top of a model's directory, is a weight file of this kind."""
    return kind is not None and name.endswith(kind) and "/" not in name and name not in _NOT_WEIGHTS


def _download(name: str, revision: str | None) -> LocatedModel:
    """Fetch the model `name` from the Hub: its weights in one kind only, as an engine reads no more."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    unreachable: Exception | None = None
    kinds: tuple[str, ...] = _HUB_WEIGHTS
    try:
        kind = _choose_weights(HfApi().list_repo_files(name, revision=revision))
        kinds = (kind,) if kind in _HUB_WEIGHTS else ()
    except HFValidationError as exc:
        raise ModelUnavailable(f"--model {name}: no such directory, and not a Hub name: {exc}") from exc
    except Exception as exc:
        # Which errors the network has depends on the HTTP library under the Hub's: whatever it was,
        # the files may be in the cache.
        unreachable = exc
    for suffix in kinds:
        path = _fetch(name, revision, f"*{suffix}", unreachable)
        if _choose_weights(file.name for file in path.iterdir()) is not None:
            # A snapshot's directory is named after its commit.
            return LocatedModel(name=name, path=path, repo_id=name, revision=path.name)
    where = "the Hub's cache here, and the Hub was not reached," if unreachable else "its repository"
    raise ModelUnavailable(
        f"--model {name}: {where} has no weights ({', '.join(_HUB_WEIGHTS)}); name another model or revision"
    ) from unreachable


def _fetch(name: str, revision: str | None, weights: str, unreachable: Exception | None) -> Path:
    """Return the snapshot's directory, fetched; from the cache alone where the Hub is `unreachable`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*_HUB_FILES, weights],
                local_files_only=unreachable is not None,
            )
        )
    except Exception as exc:  # As for the list of files.
        raise ModelUnavailable(
            f"--model {name}: not a directory here, and the Hub did not give it: {unreachable or exc}; "
            "check the name, the network and HF_TOKEN, or run without --model for the embedded one"
        ) from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelUnavailable(f"{path}: cannot be read: {exc}; fetch the model again") from exc
    return value if isinstance(value, dict) else {}


def _find_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the chat template: a file of its own goes before the tokenizer's config."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ModelUnavailable(f"{file}: cannot be read as UTF-8: {exc}; fetch the model again") from exc
    template = tokenizer_config.get("chat_template") or _read_json(path / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
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
