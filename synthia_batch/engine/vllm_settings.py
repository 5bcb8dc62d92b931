"""Checks `--set engine.KEY=VALUE` against the fields of vLLM's own EngineArgs, without importing vllm.

Importing it takes 8 s and a device. The fields stand in one file of the installed package, which
is parsed instead: 0.1 s.
"""

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.errors import UsageError

_SAID_ELSEWHERE = {
    "model": "--model",
    "tokenizer": "--model",
    "revision": "--revision",
    "trust_remote_code": "--set model.trust_remote_code=true",
    "max_model_len": "--set model.max_model_len=TOKENS",
    "seed": "--seed",
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
}
"""What the job itself must know, for its prompts, its seeds or its identity."""
_PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Return if vLLM has every field of `settings`, and those of a plain type have a value of it.

    Raises:
        UsageError: One does not; says which was probably meant.
    """
    if not settings:
        return
    fields = list_fields()
    for name, value in settings.items():
        if name in _SAID_ELSEWHERE:
            raise UsageError(
                f"engine.{name}: the job must know this too; say it with {_SAID_ELSEWHERE[name]}"
            )
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean engine.{near[0]}?" if near else "see `vllm serve --help=all` for the list"
            raise UsageError(f"engine.{name}: vLLM has no such setting; {hint}")
        if not _fits(value, fields[name]):
            raise UsageError(f"engine.{name}: {value!r} is no {fields[name]}, which vLLM takes here")


def list_fields() -> Mapping[str, str]:
    """Return the fields of the installed vLLM's EngineArgs with their types as they are written.

    Raises:
        UsageError: vLLM is not installed, or keeps them elsewhere than every release so far.
    """
    path = _find_package() / "engine" / "arg_utils.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as exc:
        raise UsageError(f"{path}: cannot tell which settings this vLLM has: {exc}") from exc
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            return {
                field.target.id: ast.unparse(field.annotation)
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            }
    raise UsageError(f"{path}: has no EngineArgs, so the engine settings cannot be checked")


def _find_package() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("vLLM is not installed, so the engine settings cannot be checked")
    return Path(spec.submodule_search_locations[0])


def _fits(value: Any, annotation: str) -> bool:
    """Whether `value` is of the type written; of types other than plain ones vLLM itself judges."""
    names = [name.strip() for name in annotation.split("|")]
    if value is None:
        return "None" in names or not set(names) <= set(_PLAIN_TYPES)
    plain = [_PLAIN_TYPES.get(name) for name in names if name != "None"]
    if None in plain:
        return True
    accepted = {kind for kinds in plain if kinds is not None for kind in kinds}
    return type(value) in accepted
