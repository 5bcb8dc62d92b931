"""`synthia-batch presets`: the settings that model cards recommend, with their sources."""

from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.job.presets import Preset, Sourced


def presets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the presets, or show one with the model card's line for each value."""
    from synthia_batch.job.presets import list_presets, read_preset

    if name is not None:
        preset = read_preset(name)
        show(encode_json(preset.to_dict(), indent=2) if as_json else _describe(preset))
        return
    known = [read_preset(other) for other in list_presets()]
    if as_json:
        show(encode_json([preset.to_dict() for preset in known], indent=2))
        return
    width = max(len(preset.name) for preset in known)
    for preset in known:
        models = ", ".join(preset.matches) or preset.title
        show(f"{preset.name:<{width}}  {models}")


def _describe(preset: "Preset") -> str:
    lines = [f"{preset.name}: {preset.title}", f"card: {preset.card or 'none'}"]
    for title, section in (("job", preset.job), ("on GPUs", preset.placement), ("facts", preset.facts)):
        lines += ["", f"{title}:"] if section else []
        lines += [line for key, entry in section.items() for line in _describe_entry(key, entry)]
    if preset.memory_table:
        lines += ["", "files:", *(f"  {row}" for row in preset.memory_table)]
    return "\n".join(lines)


def _describe_entry(key: str, entry: "Sourced") -> list[str]:
    lines = [f"  {key}: {'not set' if entry.value is None else entry.value}"]
    if entry.line is not None:
        where = f" (of {entry.card})" if entry.card else ""
        lines.append(f"      card{where}: {entry.line}")
    if entry.reason is not None:
        lines.append(f"      {entry.reason}")
    return lines
