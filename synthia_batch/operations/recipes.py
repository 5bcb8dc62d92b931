"""Recipes: pipelines that are shipped, written for an input of the user's."""

import re
from collections.abc import Mapping
from pathlib import Path

import synthia_batch
from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import suggest_name
from synthia_batch.inputs.records.columns import spell_name
from synthia_batch.operations.init import JobProposal, quote, quote_paths, relate_paths

_EXAMPLE = "path: ../../inputs/questions.jsonl, limit: 4"
"""The input of every shipped pipeline that asks something of one, in its first stage."""
_NUMBERED_EXAMPLE = "rows: 8, generate_role: user"
"""The input of the others."""
_COLUMN = "question"
"""The column of that input that has the prompts."""
_STAGES = re.compile(r"- name: (\w+)")
_FILES = re.compile(r"(?:prompt_template|json_schema): ([\w.-]+)")


def list_recipes() -> dict[str, Path]:
    """Return the job files of the recipes by name."""
    package = Path(synthia_batch.__file__).parent
    installed, checkout = package / "recipes", package.parent / "jobs" / "pipelines"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def write_recipe(name: str, proposal: JobProposal, file: Path) -> Mapping[Path, str]:
    """Return the texts of the recipe's files: its job file at `file`, and what it names beside that.

    Raises:
        UsageError: There is no such recipe, or the input has no column of prompts.
    """
    recipes = list_recipes()
    if name not in recipes:
        hint = suggest_name(name, recipes, f"there are {', '.join(recipes)}")
        raise UsageError(f"--recipe {name}: there is no such recipe; {hint}")
    text = recipes[name].read_text(encoding="utf-8")
    prompt = proposal.columns.prompt
    asks_nothing = _NUMBERED_EXAMPLE in text
    if asks_nothing and not proposal.is_numbered:
        raise UsageError(
            f"--recipe {name}: asks nothing of an input; name rows://1000, so many rows, instead"
        )
    if prompt is None and not asks_nothing:
        raise UsageError(f"--recipe {name}: expected rows of prompts, got {proposal.holds}; name such a file")
    shown = quote_paths(relate_paths(proposal, file.parent))
    if prompt is None:
        text = text.replace(_NUMBERED_EXAMPLE, _NUMBERED_EXAMPLE.replace("8", str(proposal.rows)))
        return _name_files(recipes[name], text, file, {})
    head, _, tail = text.partition(_EXAMPLE)
    uses_template = "prompt_template" in tail.partition("}")[0]
    column = "" if uses_template else f", prompt_column: {quote(prompt)}"
    if proposal.columns.id is not None:
        column += f", id_column: {quote(proposal.columns.id)}"
    if prompt in _STAGES.findall(text):
        raise UsageError(
            f"--recipe {name}: the column {prompt!r} has the name of a stage; rename the column, or "
            "write the pipeline by hand"
        )
    text = f"{head}path: {shown}{column}{tail}".replace(f"[{_COLUMN}]", f"[{quote(prompt)}]")
    names = {f"{{{{ {_COLUMN} }}}}": f"{{{{ {spell_name(prompt)} }}}}"}
    return _name_files(recipes[name], text, file, names)


def _name_files(recipe: Path, text: str, file: Path, names: Mapping[str, str]) -> Mapping[Path, str]:
    """Return `text` as that of `file`, and the files beside the recipe that it names, with other `names`."""
    files = {file: text.replace(f"jobs/pipelines/{recipe.name}", str(file))}
    for other in dict.fromkeys(_FILES.findall(text)):
        template = recipe.with_name(other).read_text(encoding="utf-8")
        for old, new in names.items():
            template = template.replace(old, new)
        files[file.with_name(other)] = template
    return files
