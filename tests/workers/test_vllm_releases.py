"""Every name, argument and variable of vLLM that this package uses, held against the source of each release.

Besides the installed vLLM, releases unpacked below the folder VLLM_RELEASES are read: one folder each, with
the folder `vllm` of a wheel (`pip download --no-deps vllm==0.26.0`, then unzip). Only Python is parsed.
"""

import ast
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_engine_environment import SPEC

import synthia_batch.workers.vllm as own_package
from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import LoraAdapter
from synthia_batch.workers.engine import Placement, Reduction
from synthia_batch.workers.environment import preferred_environment, required_environment
from synthia_batch.workers.vllm import compat
from synthia_batch.workers.vllm.arguments import (
    CLEAN_ATTENTION_BACKENDS,
    LORA_RANKS,
    MLA_ATTENTION_BACKEND,
    engine_arguments,
)

OWN = Path(str(own_package.__file__)).parent
FOLDER = "VLLM_RELEASES"
WANTED = ("0.26", "0.32", "0.33")
CPU_ONLY = {"batch_invariance.py", "cpu_patches.py", "sampler.py", "lean_import.py"}
"""Modules that are imported only where the patches apply."""
INSTANCES = {"vllm.platforms.current_platform": "vllm.platforms.interface"}
"""Imported objects, and the modules with their classes."""


@functools.cache
def find_releases() -> dict[str, Path]:
    """Return the folder `vllm` of each release at hand, by release."""
    folders = [Path(os.environ[FOLDER])] if os.environ.get(FOLDER) else []
    found = [path.parent for folder in folders for path in sorted(folder.glob("*/vllm/__init__.py"))]
    installed = importlib.util.find_spec("vllm")
    if installed is not None and installed.origin is not None:
        found.append(Path(installed.origin).parent)
    return {".".join(map(str, compat.read_release(read_version(path)))): path for path in found}


def read_version(package: Path) -> str:
    for node in parse(package / "_version.py").body:
        if isinstance(node, ast.Assign) and "__version__" in map(ast.unparse, node.targets):
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{package} does not say its version")


def find_release(name: str) -> Path:
    if name not in find_releases():
        pytest.skip(
            f"vLLM {name} is not at hand: unpack its wheel into a folder below ${FOLDER} "
            f"(at hand: {', '.join(find_releases()) or 'none'})"
        )
    return find_releases()[name]


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def find_module(package: Path, name: str) -> Path | None:
    """Return the file of the module `name`, such as vllm.lora.request."""
    path = package.parent.joinpath(*name.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def list_names(package: Path, module: str) -> set[str]:
    """Return what `module` defines or imports at its top, and its lazily loaded names."""
    file = find_module(package, module)
    if file is None:
        return set()
    names: set[str] = set()
    for node in ast.walk(parse(file)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Dict(keys=keys):  # vllm/__init__.py loads by a table of names.
                names |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return names


def find_owner(package: Path, name: str) -> str:
    """Return the module `name`, or the module that defines the class `name`, also behind one import."""
    name = INSTANCES.get(name, name)
    if find_module(package, name) is not None:
        return name
    module, _, kind = name.rpartition(".")
    file = find_module(package, module)
    assert file is not None, f"no module {module}"
    for node in parse(file).body:
        if isinstance(node, ast.ImportFrom) and kind in {alias.asname or alias.name for alias in node.names}:
            return f"{module}.{node.module}" if node.level else str(node.module)
    return module


def list_uses(file: Path) -> Iterator[tuple[str, str]]:
    """Yield every (module of vLLM, name) that one of this package's modules imports or looks up in one."""
    aliases: dict[str, str] = {}
    tree = parse(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from ((str(node.module), alias.name) for alias in node.names)
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            aliases |= {a.asname: a.name for a in node.names if a.asname and a.name.startswith("vllm")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield aliases[node.value.id], node.attr


def list_fields(package: Path, file: str, name: str) -> set[str]:
    """Return the fields of a class, or the parameters of its constructor if it has one."""
    found = next(n for n in parse(package / file).body if isinstance(n, ast.ClassDef) and n.name == name)
    fields = {
        n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            fields |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return fields


def list_arguments(device: str) -> set[str]:
    """Return every argument that an engine on `device` is created with, in any job."""
    adapter = LoraAdapter(name="a", path=Path("/a"), rank=8, digest="")
    gguf = dataclasses.replace(SPEC.model, gguf=Path("/m.gguf"))
    specs = [
        dataclasses.replace(SPEC, device=device, determinism=determinism, **options)  # type: ignore[arg-type]
        for determinism in ("fast", "strict")
        for options in ({}, {"adapters": (adapter,)}, {"model": gguf}, {"tensor_parallel_size": 2})
    ]
    return {
        name
        for spec in specs
        for name in engine_arguments(spec, Placement(reduction=Reduction(batch_halvings=5, load_failures=1)))
    }


@pytest.mark.parametrize("release", WANTED)
def test_every_name_that_is_imported_or_patched_is_in_the_release(release: str) -> None:
    package = find_release(release)
    print(f"vLLM {read_version(package)}")
    files = [f for f in OWN.glob("*.py") if compat.has_cpu_patches(release) or f.name not in CPU_ONLY]
    assert len(files) >= 10
    uses = {(module, name) for file in files for module, name in list_uses(file)}
    assert len(uses) >= 15
    for module, name in sorted(uses):
        owner = find_owner(package, module)
        known = name in list_names(package, owner) or find_module(package, f"{owner}.{name}")
        assert known, f"vLLM {release}: {module} has no {name}"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("release", WANTED)
def test_every_argument_of_an_engine_is_one_of_the_release(release: str, device: str) -> None:
    package = find_release(release)
    known = list_fields(package, "engine/arg_utils.py", "EngineArgs")
    known |= list_fields(package, "entrypoints/llm.py", "LLM")
    assert not list_arguments(device) - known


@pytest.mark.parametrize("release", WANTED)
def test_every_sampling_parameter_and_variable_is_one_of_the_release(release: str) -> None:
    package = find_release(release)
    params = list_fields(package, "sampling_params.py", "SamplingParams")
    assert {"seed", "top_k", "top_p", "min_tokens", "output_kind", "structured_outputs", "logprobs"} <= params
    variables = set()
    for device in ("cpu", "cuda"):
        spec = dataclasses.replace(SPEC, device=device)  # type: ignore[arg-type]
        variables |= required_environment(spec).keys() | preferred_environment(spec).keys()
    known = (package / "envs.py").read_text()
    assert not {v for v in variables if v.startswith("VLLM_") and f'"{v}"' not in known}


@pytest.mark.parametrize("release", WANTED)
def test_the_backends_of_strict_determinism_declare_batch_invariance(release: str) -> None:
    package = find_release(release)
    for file, name in (
        ("triton_attn", CLEAN_ATTENTION_BACKENDS[0]),
        ("mla/triton_mla", MLA_ATTENTION_BACKEND),
    ):
        text = (package / f"v1/attention/backends/{file}.py").read_text()
        assert "def supports_batch_invariance" in text
        assert f"{name} = " in (package / "v1/attention/backends/registry.py").read_text()


@pytest.mark.parametrize("release", WANTED)
def test_a_top_p_alone_is_what_vllm_splits_by_the_batch(release: str) -> None:
    """Why `limit_top_k` exists: if a release no longer splits rows, it can go there."""
    package = find_release(release)
    text = (package / "v1/sample/ops/topk_topp_triton.py").read_text()
    splits = "def _topp_split_count(batch_size" in text
    assert splits == (release != "0.26")
    states = (package / "v1/worker/gpu/sample/states.py").read_text()
    assert "top_k <= 0 or top_k > self.vocab_size" in states


@pytest.mark.parametrize("release", WANTED)
def test_ranks_of_adapters_are_those_of_the_release(release: str) -> None:
    text = (find_release(release) / "config/lora.py").read_text()
    assert all(f"{rank}" in text for rank in LORA_RANKS)


@pytest.mark.parametrize(
    ("version", "support"),
    [("0.25.1", "older"), ("0.26.0", "supported"), ("0.33.0+cu129", "supported"), ("0.34.0rc1", "newer")],
)
def test_the_range_of_releases(version: str, support: str) -> None:
    assert compat.find_support(version) == support


def test_cpu_patches_are_left_out_of_a_release_that_they_were_not_tested_on() -> None:
    fast = dataclasses.replace(SPEC, determinism="fast")
    adapter = LoraAdapter(name="a", path=Path("/a"), rank=8, digest="")
    assert compat.check_cpu_patches(SPEC, "0.32.0") is None
    assert compat.check_cpu_patches(dataclasses.replace(SPEC, device="cuda"), "0.33.0") is None
    assert "they are left out" in str(compat.check_cpu_patches(fast, "0.33.0"))
    with pytest.raises(UsageError, match=r"0\.33\.0 is installed: without them it is not strictly"):
        compat.check_cpu_patches(SPEC, "0.33.0")
    with pytest.raises(UsageError, match="another row's LoRA adapter"):
        compat.check_cpu_patches(dataclasses.replace(fast, adapters=(adapter,)), "0.26.0")


def test_what_0_26_lacks_has_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions: Any = pytest.importorskip("vllm.exceptions")
    assert compat.client_errors() == (exceptions.VLLMClientError, ValueError)
    monkeypatch.delattr(exceptions, "VLLMClientError")
    assert compat.client_errors() == (ValueError,)
