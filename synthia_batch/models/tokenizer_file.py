"""A tokenizer.json for every model, converted once if the model only has an older format."""

from importlib import metadata
from pathlib import Path

from filelock import FileLock

from synthia_batch.core.cache import find_user_cache, replace_cached
from synthia_batch.core.digest import digest_file, digest_json
from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.core.files import make_private_directories
from synthia_batch.core.vision import hide_other_builds

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""The files that define how text becomes tokens."""


def find_tokenizer_file(model: Path) -> Path:
    """Return the tokenizer.json of the model directory `model`.

    A SentencePiece or slow tokenizer is converted by transformers into the user's cache, under the
    digest of everything that the conversion depends on.

    Raises:
        ModelUnavailable: There is no tokenizer, or it cannot be converted or stored.
    """
    file = model / "tokenizer.json"
    if file.is_file():
        return file
    if not any((model / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise ModelUnavailable(f"{model}: no tokenizer.json or tokenizer.model; download the model again")
    converted = find_user_cache() / "tokenizers" / _digest_conversion(model) / "tokenizer.json"
    try:
        make_private_directories(converted.parent)
        with FileLock(converted.parent / "lock"):
            if not converted.is_file():
                replace_cached(converted, _convert(model), is_durable=True)
    except OSError as exc:
        raise ModelUnavailable(
            f"{model}: its converted tokenizer cannot be stored in {converted.parent}: {exc}; "
            "free space there, or set XDG_CACHE_HOME to another directory"
        ) from exc
    return converted


def _digest_conversion(model: Path) -> str:
    """Return the digest of all inputs: fine-tunes share a tokenizer.model but add tokens."""
    # With config.json: it names the tokenizer's class if tokenizer_config.json does not.
    files = [model / name for name in (*TOKENIZER_FILES, "config.json")]
    try:
        converter = metadata.version("transformers")
    except metadata.PackageNotFoundError as exc:
        raise ModelUnavailable(
            f"{model}: no tokenizer.json, and converting its tokenizer needs transformers; "
            "run: pip install 'synthia-batch[demo]'"
        ) from exc
    digests = {file.name: digest_file(file, None) for file in files if file.is_file()}
    return digest_json({"transformers": converter, "files": digests})


def _convert(model: Path) -> bytes:
    try:
        hide_other_builds()
        from transformers import AutoTokenizer

        text: str = AutoTokenizer.from_pretrained(model).backend_tokenizer.to_str(pretty=True)
    except Exception as exc:  # transformers passes on whatever its converters raise.
        raise ModelUnavailable(
            f"{model}: its tokenizer could not be converted to tokenizer.json: {exc}; "
            "convert it with transformers and save it in the model's directory"
        ) from exc
    return text.encode()
