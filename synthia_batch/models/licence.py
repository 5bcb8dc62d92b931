"""The licence that a model's own card names."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

CARD_NAME = "README.md"
_MOST_BYTES = 1 << 20


def read_licence(path: Path) -> str | None:
    """Return the licence that the card in the model directory `path` names, None where none does.

    The Hub's cards begin with YAML between two lines of `---`; see
    https://huggingface.co/docs/hub/model-cards#model-card-metadata. A licence of the model's own is
    `other` there, and has a name beside it.
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
