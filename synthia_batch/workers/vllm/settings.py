"""Checks `--set engine.KEY=VALUE` against the fields of vLLM's EngineArgs, without importing vllm.

Importing it takes 8 s and a device. Parsing the file with the fields in the installed package takes 0.1 s.
"""

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import suggest_name
from synthia_batch.job.resolved import Device, EngineSpec
from synthia_batch.job.schema import Determinism
from synthia_batch.workers.vllm.arguments import SERVER_SETTINGS
from synthia_batch.workers.vllm.policy import check_not_refused

_JOB_FLAGS = {
    "model": "--model",
    "tokenizer": "--model",
    "revision": "--revision",
    "trust_remote_code": "--set model.trust_remote_code=true",
    "max_model_len": "--set model.max_model_len=TOKENS",
    "dtype": "--set model.dtype=TYPE",
    "quantization": "--set model.quantization=METHOD",
    "seed": "--seed",
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "hf_config_path": "--model",
    "model_weights": "--model",
    "enable_lora": "--lora",
}
"""Settings that the job itself needs, for its prompts, seeds or identity, and the flags that set them."""
_PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def check_settings(settings: Mapping[str, Any], device: Device, determinism: Determinism) -> None:
    """Check that vLLM has every field of `settings`, that values of plain types match, and that a job on
    `device` may use them.

    Raises:
        UsageError: A setting is unknown, invalid or refused. The message suggests a correction.
    """
    if not settings:
        return
    fields = {**list_fields(), **SERVER_SETTINGS}
    for name, value in settings.items():
        if name in _JOB_FLAGS:
            raise UsageError(f"engine.{name}: the job needs this value too; set it with {_JOB_FLAGS[name]}")
        if name not in fields:
            hint = suggest_name(name, fields, "see `vllm serve --help=all` for the list", "engine.{}".format)
            raise UsageError(f"engine.{name}: vLLM has no such setting; {hint}")
        if name == "reasoning_parser" and "reasoning_parser_plugin" not in settings:
            _check_parser(name, value, list_reasoning_parsers())
        if name == "tool_call_parser" and "tool_parser_plugin" not in settings:
            _check_parser(name, value, list_tool_parsers())
        if not _matches(value, fields[name]):
            raise UsageError(f"engine.{name}: expected {fields[name]}, got {value!r}")
        check_not_refused(name, value, device, determinism)


def _check_parser(setting: str, name: Any, known: list[str]) -> None:
    if name not in known:
        hint = suggest_name(str(name), known, f"it has {', '.join(known)}")
        raise UsageError(f"engine.{setting}: vLLM has no parser {name!r}; {hint}")


def list_reasoning_parsers() -> list[str]:
    """Return the names of the installed vLLM's reasoning parsers."""
    return _list_parsers("reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER")


def list_tool_parsers() -> list[str]:
    """Return the names of the installed vLLM's parsers of tool calls; raises as `list_reasoning_parsers`."""
    return _list_parsers("tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER")


def _list_parsers(file: str, table: str) -> list[str]:
    for node in parse_vllm(file).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            if ast.unparse(node.targets[0]) == table:
                return sorted(map(str, names))
    raise UsageError(f"the installed vLLM does not list its parsers in {file}, where earlier releases did")


def check_processes(spec: EngineSpec) -> None:
    """Check that the model may be split over processes as in `spec`.

    Raises:
        UsageError: It may not: on CPUs, strict determinism and adapters need this package's patches, which
            apply to the worker's process but not to those that vLLM starts.
    """
    if spec.device != "cpu" or (spec.determinism == "fast" and not spec.adapters):
        return
    if spec.settings.get("distributed_executor_backend") not in (None, "uni"):
        purpose = "keep LoRA adapters apart" if spec.adapters else "be strictly deterministic"
        raise UsageError(
            f"engine.distributed_executor_backend: on CPUs an engine in separate processes cannot {purpose}; "
            "leave it out"
        )
    parts = spec.tensor_parallel_size * spec.pipeline_parallel_size
    if parts > 1 and spec.adapters:
        raise UsageError(
            f"on CPUs an engine of {parts} processes cannot keep LoRA adapters apart; leave out "
            "--tensor-parallel-size and --pipeline-parallel-size"
        )
    if parts > 1:
        raise UsageError(
            f"the job requires an engine of {parts} GPUs, but the installed vLLM runs on CPUs, where {parts} "
            "processes cannot be strictly deterministic; leave out --tensor-parallel-size and "
            "--pipeline-parallel-size, use --determinism fast, or a machine with GPUs (`synthia-batch "
            "doctor`)"
        )


def list_fields() -> Mapping[str, str]:
    """Return the fields of the installed vLLM's EngineArgs with their annotations."""
    return find_class("engine/arg_utils.py", "EngineArgs")


def find_class(file: str, name: str) -> Mapping[str, str]:
    """Return the fields of a class in `file` of the installed vLLM with their annotations.

    Raises:
        UsageError: vLLM is not installed, or has no such class there.
    """
    path = _find_package() / file
    for node in parse_vllm(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                field.target.id: ast.unparse(field.annotation)
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            }
    raise UsageError(f"{path}: no class {name}, so settings of vLLM cannot be checked")


def parse_vllm(file: str) -> ast.Module:
    """Return the syntax tree of `file` of the installed vLLM.

    Raises:
        UsageError: vLLM is not installed, or has no such file.
    """
    path = _find_package() / file
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as exc:
        raise UsageError(f"{path}: cannot read the settings of the installed vLLM: {exc}") from exc


def _find_package() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("vLLM is not installed, so the engine settings cannot be checked")
    return Path(spec.submodule_search_locations[0])


def _matches(value: Any, annotation: str) -> bool:
    """Whether `value` has the annotated type; vLLM itself checks types that are not plain."""
    names = [name.strip() for name in annotation.split("|")]
    if value is None:
        return "None" in names or not set(names) <= set(_PLAIN_TYPES)
    plain = [_PLAIN_TYPES.get(name) for name in names if name != "None"]
    if None in plain:
        return True
    accepted = {kind for kinds in plain if kinds is not None for kind in kinds}
    return type(value) in accepted
