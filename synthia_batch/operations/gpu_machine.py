"""What a GPU engine needs of its machine besides GPUs: driver, compiler, shared memory, kernels."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synthia_batch.core.hardware import name_driver
from synthia_batch.workers.vllm.compat import advise_on_import

MIN_DRIVERS = {12: 525, 13: 580}
"""Oldest driver of each CUDA release: https://docs.nvidia.com/deploy/cuda-compatibility/"""
MIN_SHARED_BYTES = 10**9
"""For the messages of NCCL and vLLM between an engine's processes; containers often have 64 MB."""
IMPORT_SECONDS = 120
_IMPORT = """
import importlib, importlib.util
import vllm
names = ("vllm._C_stable_libtorch", "vllm._C")
importlib.import_module(next(name for name in names if importlib.util.find_spec(name)))
print(vllm.__version__)
"""
_MAKERS = {"0x1002": "AMD", "0x8086": "Intel"}
_DEVICES = Path("/sys/class/drm")

CheckState = Literal["ok", "unknown", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and its result."""

    name: str
    state: CheckState
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """What the installed torch computes with: its CUDA release, or `maker` if the GPUs are not NVIDIA's."""

    cuda: str | None
    maker: str | None


def examine_gpu_machine(gpus_per_engine: int) -> Iterator[Check]:
    """Yield what an engine of `gpus_per_engine` GPUs needs here; takes seconds, since vLLM is imported."""
    build = read_torch_build()
    if build.maker is None:
        yield check_driver(name_driver(), build.cuda)
    yield check_compiler()
    yield check_headers(Path(sysconfig.get_paths()["include"]))
    if gpus_per_engine > 1:
        yield check_shared_memory(Path("/dev/shm"))
    yield check_import(_IMPORT)


def read_torch_build() -> TorchBuild:
    """Return the build of the installed torch, without importing it."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec is not None else None
    values: dict[str, object] = {}
    if folders:
        for node in ast.parse((Path(folders[0]) / "version.py").read_text()).body:
            target = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and isinstance(node, ast.AnnAssign) and node.value is not None:
                values[target.id] = ast.literal_eval(node.value)
    makers = {"hip": "AMD", "rocm": "AMD", "xpu": "Intel"}
    cuda = values.get("cuda")
    return TorchBuild(
        cuda=str(cuda) if cuda else None,
        maker=next((maker for key, maker in makers.items() if values.get(key)), None),
    )


def name_other_gpus(devices: Path = _DEVICES) -> tuple[str, ...]:
    """Return the GPUs of AMD and Intel that Linux lists in `devices`, with their numbers."""
    names = []
    for card in sorted(devices.glob("card[0-9]")) + sorted(devices.glob("card[0-9][0-9]")):
        try:
            maker = _MAKERS.get((card / "device" / "vendor").read_text().strip())
            number = (card / "device" / "device").read_text().strip()
        except OSError:
            continue
        if maker is not None:
            names.append(f"{maker} GPU {number}")
    return tuple(names)


def check_driver(driver: str, cuda: str | None) -> Check:
    """Return whether the NVIDIA `driver` can run a torch built for `cuda`."""
    major = (cuda or "").partition(".")[0]
    needed = MIN_DRIVERS.get(int(major)) if major.isdigit() else None
    number = driver.partition(".")[0]
    if not number.isdigit():
        return Check(name="driver", state="bad", text="nvidia-smi reports none; install the NVIDIA driver")
    if needed is None:
        return Check(name="driver", state="unknown", text=f"{driver}; torch is built for CUDA {cuda}")
    if int(number) < needed:
        text = (
            f"{driver}, but torch is built for CUDA {cuda}, which needs {needed} or newer; update the driver"
        )
        return Check(name="driver", state="bad", text=f"{text}, or install an older release of vLLM")
    return Check(name="driver", state="ok", text=f"{driver}, for CUDA {cuda}")


def check_compiler() -> Check:
    """Return whether Triton finds a C compiler, in its own order."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        text = "none found, but Triton compiles kernels at run time; install gcc, or set CC"
        return Check(name="compiler", state="bad", text=text)
    return Check(name="compiler", state="ok", text=compiler)


def check_headers(folder: Path) -> Check:
    """Return whether the `folder` of Python's headers has Python.h, which Triton compiles with."""
    if (folder / "Python.h").is_file():
        return Check(name="python headers", state="ok", text=str(folder))
    text = f"{folder} has no Python.h, which Triton needs; install python3-dev of this Python"
    return Check(name="python headers", state="bad", text=text)


def check_shared_memory(folder: Path) -> Check:
    """Return whether the shared memory in `folder` suffices for an engine on several GPUs."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        return Check(name="shared memory", state="unknown", text=f"{folder}: {exc.strerror}")
    text = f"{folder}: {free / 1e9:.1f} GB free"
    if free >= MIN_SHARED_BYTES:
        return Check(name="shared memory", state="ok", text=text)
    text = (
        f"{text}, an engine on several GPUs needs 1 GB; start the container with --shm-size=2g or --ipc=host"
    )
    return Check(name="shared memory", state="bad", text=text)


def check_import(program: str, timeout_seconds: float = IMPORT_SECONDS) -> Check:
    """Return whether vLLM and its kernels load, by running `program` in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name="vllm", state="unknown", text=f"not imported within {timeout_seconds:.0f} s")
    if done.returncode == 0:
        version = done.stdout.split()[-1] if done.stdout.split() else ""
        return Check(name="vllm", state="ok", text=f"{version} and its kernels load")
    reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
    text = f"import fails: {reason.strip()}; {advise_on_import(reason)}"
    return Check(name="vllm", state="bad", text=text)
