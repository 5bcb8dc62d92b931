"""A model's memory and download sizes, without downloading or loading its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.core.telemetry import keep_private
from synthia_batch.job.sections import DEMO_MODEL
from synthia_batch.models.demo import demo_model_path
from synthia_batch.models.gguf import (
    choose_files,
    estimate_dequantized_bytes,
    find_local_parts,
    parse_hub_name,
)
from synthia_batch.models.gguf_header import read_gguf_header
from synthia_batch.models.hub import Repository, explain, fetch, look_up, read_sizes
from synthia_batch.models.locate import choose_weights, is_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeight:
    """A model's sizes; None if unknown.

    `weights_bytes` is the size in an engine's memory, `fetch_bytes` that of files still to be downloaded
    or converted. `kv_values_per_token` counts the keys and values of a token in all layers.
    """

    weights_bytes: int | None
    fetch_bytes: int | None
    kv_values_per_token: int | None
    max_model_len: int | None


UNKNOWN = ModelWeight(weights_bytes=None, fetch_bytes=None, kv_values_per_token=None, max_model_len=None)


def weigh_model(name: str, revision: str | None, device: Literal["cpu", "cuda"]) -> ModelWeight:
    """Return the sizes of the model `name`. Downloads at most a list of files and a config.json.

    Raises:
        ModelUnavailable: There is no such model.
    """
    keep_private()
    path = demo_model_path() if name == DEMO_MODEL else Path(name).expanduser()
    if path.is_dir():
        return _weigh_directory(path)
    if name == DEMO_MODEL:
        return UNKNOWN  # It is created on first use; its preset gives its size.
    parts = find_local_parts(path.absolute())
    if parts:
        return _weigh_gguf(parts, device)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelUnavailable(f"{name}: no such directory or file; name one, or a Hub repository")
    wanted = parse_hub_name(name)
    repository = look_up(wanted.repo_id if wanted else name, revision)
    sizes = read_sizes(repository) if repository.files is not None else {}
    if wanted is not None:
        files = choose_files(repository.files, wanted) if repository.files is not None else ()
        size = sum(sizes[file] for file in files) if files and all(file in sizes for file in files) else None
        if size is None:
            return UNKNOWN
        on_cpu = device == "cpu"
        weights = estimate_dequantized_bytes(size, wanted.quantization) if on_cpu else size
        return _make_weight(weights, size + (weights if on_cpu else 0), {})
    return _weigh_repository(repository, sizes)


def _weigh_directory(path: Path) -> ModelWeight:
    files = [file for file in path.iterdir() if file.is_file()]
    kind = choose_weights(file.name for file in files)
    for file in files:
        if file.suffix == ".safetensors":
            _check_complete(file)
    weights = sum(file.stat().st_size for file in files if is_weight(file.name, kind))
    return _make_weight(weights or None, 0, _read_config(path))


def _check_complete(file: Path) -> None:
    """Raise ModelUnavailable if a safetensors file has another size than the tensors in its header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, size)))
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ModelUnavailable(f"{file}: not a safetensors file: {exc}; download it again") from exc
    whole = 8 + length + end
    if size != whole:
        raise ModelUnavailable(
            f"{file}: it has {size} bytes, and {whole} according to its header; download it again"
        )


def _weigh_gguf(parts: tuple[Path, ...], device: str) -> ModelWeight:
    size = sum(part.stat().st_size for part in parts)
    joining = size if len(parts) > 1 else 0
    if device == "cuda":
        return _make_weight(size, joining, {})
    if joining:  # The first part is shorter than its header says: it cannot be read alone.
        return _make_weight(estimate_dequantized_bytes(size, parts[0].name), joining * 2, {})
    weights = read_gguf_header(parts[0]).dequantized_bytes
    return _make_weight(weights, weights, {})


def _weigh_repository(repository: Repository, sizes: Mapping[str, int]) -> ModelWeight:
    if repository.files is None and not repository.is_out_of_reach and repository.reason is not None:
        raise ModelUnavailable(explain(repository, repository.reason))
    kind = choose_weights(sizes)
    weights = sum(size for name, size in sizes.items() if is_weight(name, kind)) or None
    try:
        config = _read_config(fetch(repository, ["config.json"]))
    except ModelUnavailable:
        if repository.files is not None:
            raise
        return UNKNOWN  # No network, nothing in the cache.
    return _make_weight(weights, weights, config)


def _make_weight(weights: int | None, fetch_bytes: int | None, config: Mapping[str, Any]) -> ModelWeight:
    return ModelWeight(
        weights_bytes=weights,
        fetch_bytes=fetch_bytes,
        kv_values_per_token=count_kv_values(config),
        max_model_len=config.get("max_position_embeddings"),
    )


def count_kv_values(config: Mapping[str, Any]) -> int | None:
    """Return the number of keys and values per token: 2 x layers x key-value heads x head size.

    None for other architectures, or if the config lacks a number.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    if not isinstance(layers, int) or not isinstance(heads, int) or not heads:
        return None
    head_dim = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) else None)
    kv_heads = config.get("num_key_value_heads") or heads
    return 2 * layers * kv_heads * head_dim if head_dim else None


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as exc:
        raise ModelUnavailable(f"{path / 'config.json'}: cannot be read: {exc}; download it again") from exc
    inner = config.get("text_config") if isinstance(config, dict) else None
    return inner or config if isinstance(config, dict) else {}
