"""A tokenizer.json for every model, converted once where the model has only an older kind."""

import os
import tempfile
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from synthia_batch.core.cache import find_user_cache
from synthia_batch.core.digest import digest_file, digest_json
from synthia_batch.errors import ModelUnavailable

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What says how a model's text becomes tokens."""


def find_tokenizer_file(model: Path) -> Path:
    """Return the tokenizer.json of the model directory `model`.

    A model that has only a SentencePiece or a slow tokenizer is converted by transformers into
    the user's cache, under the digest of all that the conversion depends on.

    Raises:
        ModelUnavailable: There is no tokenizer, or it cannot be converted or kept.
    """
    file = model / "tokenizer.json"
    if file.is_file():
        return file
    if not any((model / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise ModelUnavailable(f"{model}: no tokenizer.json or tokenizer.model; fetch the model again")
    converted = find_user_cache() / "tokenizers" / _digest_conversion(model) / "tokenizer.json"
    try:
        converted.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(converted.parent / "lock"):
            if not converted.is_file():
                _write_durably(converted, _convert(model))
    except OSError as exc:
        raise ModelUnavailable(
            f"{model}: its converted tokenizer cannot be kept in {converted.parent}: {exc}; "
            "see to that place, or set XDG_CACHE_HOME to another"
        ) from exc
    return converted


def _digest_conversion(model: Path) -> str:
    """Return the digest of what decides the result: fine-tunes share a tokenizer.model and add tokens."""
    # config.json too: it names the tokenizer's class where tokenizer_config.json does not.
    files = [model / name for name in (*TOKENIZER_FILES, "config.json")]
    try:
        converter = metadata.version("transformers")
    except metadata.PackageNotFoundError as exc:
        raise ModelUnavailable(
            f"{model}: has no tokenizer.json, and making one needs transformers; "
            "run: pip install 'synthia-batch[demo]'"
        ) from exc
    digests = {file.name: digest_file(file, None) for file in files if file.is_file()}
    return digest_json({"transformers": converter, "files": digests})


def _convert(model: Path) -> bytes:
    try:
        from transformers import AutoTokenizer

        text: str = AutoTokenizer.from_pretrained(model).backend_tokenizer.to_str(pretty=True)
    except Exception as exc:  # transformers raises whatever its converters raise.
        raise ModelUnavailable(
            f"{model}: its tokenizer could not be converted to tokenizer.json: {exc}; "
            "convert it with transformers and save it beside the model"
        ) from exc
    return text.encode()


def _write_durably(path: Path, content: bytes) -> None:
    """Put `content` at `path`, which then holds all of it, also after power loss, or nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
