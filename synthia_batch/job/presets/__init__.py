"""Presets: what the model cards recommend, as layers of a job. One YAML file each."""

import difflib
from importlib import resources

from ruamel.yaml import YAML

from synthia_batch.errors import UsageError
from synthia_batch.job.layers import Layer


def list_presets() -> tuple[str, ...]:
    """Return the names of the presets."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def read_preset(name: str) -> Layer:
    """Return the layer that the preset `name` gives.

    Raises:
        UsageError: There is no such preset.
    """
    known = list_presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"--preset {name}: no such preset; {hint}")
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return Layer(origin=f"preset {name}", values=YAML(typ="safe").load(text), is_said=False)
