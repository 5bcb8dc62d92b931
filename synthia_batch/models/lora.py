"""LoRA adapters in peft's format: adapter_config.json and adapter_model.safetensors in a directory."""

import json
from pathlib import Path

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.job.resolved import LoraAdapter

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


def read_adapter(name: str, path: Path, cache: DigestCache) -> LoraAdapter:
    """Return the adapter `name` in the directory `path`.

    Raises:
        ModelUnavailable: There is none, or engines cannot read it.
    """
    directory = path.expanduser().absolute()
    config = directory / CONFIG_NAME
    try:
        settings = json.loads(config.read_bytes())
        rank, kind = int(settings["r"]), settings.get("peft_type", "LORA")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelUnavailable(
            f"--lora {name}={path}: no LoRA adapter there: cannot use its {CONFIG_NAME} "
            f"({type(exc).__name__}: {exc}); name a directory written by peft's save_pretrained"
        ) from exc
    if kind != "LORA":
        raise ModelUnavailable(f"--lora {name}={path}: expected a LORA adapter, got {kind}; name one")
    weights = next((file for file in WEIGHTS_NAMES if (directory / file).is_file()), None)
    if weights is None:
        raise ModelUnavailable(
            f"--lora {name}={path}: no {' or '.join(WEIGHTS_NAMES)} there; save the adapter again"
        )
    digests = {file: digest_file(directory / file, cache) for file in (CONFIG_NAME, weights)}
    return LoraAdapter(name=name, path=directory, rank=rank, digest=digest_json(digests))
