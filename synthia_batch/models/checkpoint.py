"""Facts read from a model's files: limits, chat template, quantization, licence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.models.tokenizer_file import find_tokenizer_file

CARD_NAME = "README.md"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a checkpoint declares its weights to be quantized. `method` is vLLM's name."""

    method: str
    detail: str

    def __str__(self) -> str:
        return f"{self.method} ({self.detail})" if self.detail else self.method


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts from a model's files.

    `max_model_len` and `vocabulary` are in tokens, None if config.json lacks them. `special_tokens` are
    those that a chat template may name. `generation` holds the model's recommended sampling values.
    `uses_mla`: it has multi-head latent attention, as vLLM decides it (config/model.py).
    """

    max_model_len: int | None
    chat_template: str | None
    special_tokens: Mapping[str, str]
    generation: Mapping[str, Any]
    quantization: Quantization | None
    tokenizer_path: Path
    vocabulary: int | None = None
    uses_mla: bool = False


def read_model_facts(path: Path) -> ModelFacts:
    """Return the facts in the files of the model directory `path`."""
    config = _read_json(path / "config.json")
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    text_config = config.get("text_config") or config
    quantized = text_config if "quantization_config" in text_config else config
    return ModelFacts(
        max_model_len=text_config.get("max_position_embeddings"),
        chat_template=_find_template(path, tokenizer_config),
        special_tokens=_find_special_tokens(path, tokenizer_config),
        generation=_read_generation(path),
        quantization=_find_quantization(path, quantized),
        tokenizer_path=find_tokenizer_file(path),
        vocabulary=text_config.get("vocab_size"),
        uses_mla=text_config.get("kv_lora_rank") is not None,
    )


def read_template(path: Path) -> str | None:
    """Return the chat template of the model directory `path`, or None."""
    return _find_template(path, _read_json(path / "tokenizer_config.json"))


def read_licence(path: Path) -> str | None:
    """Return the licence named by the model card in the directory `path`, or None.

    Hub cards start with YAML between two lines of `---`; a licence of the model's own is `other` with a
    `license_name`. Source: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
    """
    try:
        with (path / CARD_NAME).open(encoding="utf-8") as file:
            text = file.read(_MOST_BYTES)
    except (OSError, UnicodeDecodeError):
        return None
    head = _read_head(text)
    name = head.get("license")
    if name == "other" and isinstance(head.get("license_name"), str):
        return str(head["license_name"])
    return name if isinstance(name, str) and name.strip() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelUnavailable(f"{path}: cannot be read: {exc}; download the model again") from exc
    return value if isinstance(value, dict) else {}


def _find_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the chat template: from a separate file if there is one, else from the tokenizer's config."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ModelUnavailable(f"{file}: cannot be read as UTF-8: {exc}; download it again") from exc
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
    values = {name: config[name] for name in names if config.get(name) is not None}
    if config.get("max_new_tokens"):
        values["max_tokens"] = config["max_new_tokens"]
    return values


def _find_quantization(path: Path, config: Mapping[str, Any]) -> Quantization | None:
    """Return the declared quantization (GPTQ, AWQ, FP8, compressed-tensors, ...), or None.

    It is in config.json or, from older tools, in a separate file.
    """
    declared = config.get("quantization_config") or config.get("compression_config")
    method = declared.get("quant_method") if isinstance(declared, dict) else None
    for name, older in (("quant_config.json", "awq"), ("quantize_config.json", "gptq")):
        if declared is None and (path / name).is_file():
            declared = _read_json(path / name)
            method = declared.get("quant_method") or older
    if not isinstance(declared, dict) or not declared:
        return None
    # Not None: strict determinism must not mistake the weights for unquantized ones.
    method = method if isinstance(method, str) else "unknown"
    bits = declared.get("bits", declared.get("w_bit"))
    group = declared.get("group_size", declared.get("q_group_size"))
    details = [f"{bits} bits" if bits else "", f"groups of {group}" if group else ""]
    details += [text for name in ("version", "format", "fmt") if isinstance(text := declared.get(name), str)]
    return Quantization(method=method.lower(), detail=", ".join(detail for detail in details if detail))


def _read_head(text: str) -> dict[str, Any]:
    if not text.startswith("---"):
        return {}
    body, marker, _ = text[3:].partition("\n---")
    if not marker:
        return {}
    try:
        value = YAML(typ="safe").load(body)
    except YAMLError:
        return {}
    return value if isinstance(value, dict) else {}
