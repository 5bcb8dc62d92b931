"""Configuration snippets for programs that train on an exported file, printed by `export`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_AXOLOTL = {
    "messages": "chat_template",
    "sharegpt": "chat_template",
    "alpaca": "alpaca",
    "preference-messages": "chat_template.default",
}
_LLAMA_FACTORY: Mapping[str, Mapping[str, Any]] = {
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
    "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
    "alpaca": {
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        }
    },
    "preference-sharegpt": {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
}
"""Entries of LLaMA-Factory's data/dataset_info.json, by format. Default tags are ShareGPT's."""


def describe_use(name: str, path: Path) -> str:
    """Return snippets that load the file at `path`, in format `name`, for each program that reads it."""
    recipes = [load_with_datasets(name, path)]
    if name in ("messages", "prompt-completion"):
        recipes.append(f"TRL:\n{train_with_trl(path)}")
    if name == "preference":
        recipes.append(f"TRL:\n{train_with_trl(path, 'DPO')}")
    if name in _AXOLOTL:
        recipes.append(f"Axolotl, in the config:\n{list_for_axolotl(name, path)}")
    if name in _LLAMA_FACTORY:
        recipes.append(f"LLaMA-Factory, in data/dataset_info.json:\n{list_for_llama_factory(name, path)}")
    return "\n\n".join(recipes)


def load_with_datasets(name: str, path: Path) -> str:
    kind = "csv" if name == "csv" else "json"
    return f'datasets.load_dataset("{kind}", data_files={str(path)!r}, split="train")'


def train_with_trl(path: Path, method: str = "SFT") -> str:
    """Return the Python that trains on a conversational file by TRL's `method`."""
    arguments = f"model=MODEL, train_dataset=dataset, args={method}Config(output_dir=DIRECTORY)"
    return f"dataset = {load_with_datasets('messages', path)}\n{method}Trainer({arguments}).train()"


def list_for_axolotl(name: str, path: Path) -> str:
    """Return the entry of an Axolotl config's `datasets`, YAML."""
    lines = [
        "datasets:",
        f"  - path: {json.dumps(str(path))}",
        "    ds_type: json",
        f"    type: {_AXOLOTL[name]}",
    ]
    if name == "messages":
        lines += ["    field_messages: messages", *_map_fields("role", "content")]
    if name == "preference-messages":
        fields = ["messages: messages", "chosen: chosen", "rejected: rejected"]
        lines = ["rl: dpo", *lines, *(f"    field_{one}" for one in fields), *_map_fields("role", "content")]
    if name == "sharegpt":
        lines += ["    field_messages: conversations", *_map_fields("from", "value")]
    return "\n".join(lines)


def list_for_llama_factory(name: str, path: Path) -> str:
    """Return the entry of LLaMA-Factory's dataset_info.json."""
    return json.dumps({path.name.split(".")[0]: {"file_name": str(path), **_LLAMA_FACTORY[name]}}, indent=2)


def _map_fields(role: str, content: str) -> list[str]:
    return ["    message_property_mappings:", f"      role: {role}", f"      content: {content}"]
