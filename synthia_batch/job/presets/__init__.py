"""Presets: what the model cards recommend, as layers of a job. One YAML file each.

Every value has the line of a model card that it comes from, or a reason if there is
none. `tests/test_presets.py` holds the lines against the cards.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from ruamel.yaml import YAML

from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import suggest_name
from synthia_batch.job.dotted import merge_values, nest
from synthia_batch.job.loading.merge import Layer

ANY_MODEL = "chat"
"""The preset of models without one of their own."""
_OF_THE_MODEL = "model."
"""Keys that describe the preset's own model only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """A value, the `line` of a card that it comes from, and the `reason` if it needs one.

    `card` is the address of the card if it is not the preset's own.
    """

    value: Any
    line: str | None = None
    card: str | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values, without missing entries."""
        return {key: entry for key, entry in asdict(self).items() if key == "value" or entry is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSize:
    """A line of a card's table of files: sizes in GB (10**9 bytes)."""

    quantization: str
    bits: int
    size_gb: float
    ram_gb: float

    def __str__(self) -> str:
        return f"{self.quantization:<7} {self.bits} bits  {self.size_gb:6.2f} GB, RAM {self.ram_gb:6.2f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model card's values. `job` and `placement` are by dotted key of a job file, `facts` by name.

    `matches` are the names of this preset's models; `placement` applies if there are GPUs.
    """

    name: str
    title: str
    card: str | None
    matches: tuple[str, ...]
    job: Mapping[str, Sourced]
    placement: Mapping[str, Sourced]
    facts: Mapping[str, Sourced]
    memory_table: tuple[FileSize, ...]

    def knows(self, model: str) -> bool:
        """Whether `model`, a name on the Hub with or without `:QUANTIZATION`, is this preset's."""
        repo_id = model.partition(":")[0].lower()
        return any(repo_id == name.lower() for name in self.matches)

    def make_layer(self, model: str | None, *, on_gpu: bool, found: bool = False) -> Layer:
        """Return the layer for a job whose user named `model`, or none.

        For a model that is not its own, dtype, quantization, length and placement are left out. `found`:
        the preset was found by the model's name.
        """
        own = model is None or self.knows(model)
        keys = {**self.job, **(self.placement if on_gpu else {})} if own else self.job
        values: dict[str, Any] = {}
        for key, entry in keys.items():
            if (own or not key.startswith(_OF_THE_MODEL)) and entry.value is not None:
                values = merge_values(values, nest(key, entry.value))
        origin = f"preset {self.name}, found by the model's name" if found else f"preset {self.name}"
        return Layer(origin=origin, values=values, is_explicit=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        sections = {"job": self.job, "placement": self.placement, "facts": self.facts}
        return {
            "name": self.name,
            "title": self.title,
            "card": self.card,
            "matches": list(self.matches),
            **{
                name: {key: entry.to_dict() for key, entry in section.items()}
                for name, section in sections.items()
            },
            "memory_table": [
                [row.quantization, row.bits, row.size_gb, row.ram_gb] for row in self.memory_table
            ],
        }


def list_presets() -> tuple[str, ...]:
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def read_preset(name: str) -> Preset:
    """Return the preset `name`. Raises UsageError if there is no such preset."""
    known = list_presets()
    if name not in known:
        hint = suggest_name(name, known, f"there are {', '.join(known)}")
        raise UsageError(f"--preset {name}: no such preset; {hint}")
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    values = YAML(typ="safe").load(text)
    return Preset(
        name=name,
        title=values["title"],
        card=values["card"],
        matches=tuple(values["matches"]),
        memory_table=tuple(
            FileSize(quantization=row[0], bits=row[1], size_gb=row[2], ram_gb=row[3])
            for row in values.get("memory_table", ())
        ),
        **{
            section: {key: Sourced(**entry) for key, entry in values[section].items()}
            for section in ("job", "placement", "facts")
        },
    )


def find_preset(model: str) -> Preset:
    """Return the preset whose own model `model` is, or the one for any model."""
    presets = map(read_preset, list_presets())
    return next((preset for preset in presets if preset.knows(model)), read_preset(ANY_MODEL))
