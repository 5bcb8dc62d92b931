"""A tokenizer.json for every model, converted once where the model has only an older kind."""

from pathlib import Path

from filelock import FileLock

from synthia_batch.digest import digest_file
from synthia_batch.errors import ModelUnavailable
from synthia_batch.user_cache import find_user_cache


def find_tokenizer_file(model: Path) -> Path:
    """Return the tokenizer.json of the model directory `model`.

    A model that has only a SentencePiece or a slow tokenizer is converted by transformers into
    the user's cache, under the digest of its files.

    Raises:
        ModelUnavailable: There is no tokenizer, or it cannot be converted.
    """
    file = model / "tokenizer.json"
    if file.is_file():
        return file
    source = next(
        (model / name for name in ("tokenizer.model", "vocab.json") if (model / name).is_file()), None
    )
    if source is None:
        raise ModelUnavailable(f"{model}: no tokenizer.json or tokenizer.model; fetch the model again")
    converted = find_user_cache() / "tokenizers" / digest_file(source, None) / "tokenizer.json"
    converted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(converted.parent / "lock"):
        if not converted.is_file():
            _convert(model, converted)
    return converted


def _convert(model: Path, target: Path) -> None:
    try:
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(model).backend_tokenizer
    except Exception as exc:  # transformers raises whatever its converters raise.
        raise ModelUnavailable(
            f"{model}: its tokenizer could not be converted to tokenizer.json: {exc}; "
            "convert it with transformers and save it beside the model"
        ) from exc
    temporary = target.with_suffix(".tmp")
    backend.save(str(temporary))
    temporary.rename(target)
