"""Step 0: what the machine has, before anything is loaded."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.base import Result, Setting, run
from synthia_batch.core.hardware import list_gpu_memory, name_driver, name_gpus

_IMPORTS = "import ray, torch, pyarrow, vllm; print(vllm.__version__, torch.__version__, torch.version.cuda)"


def check_machine(setting: Setting) -> Result:
    """Imports, driver, compiler, and what `doctor` says."""
    logs = setting.directory / "logs"
    imports = run([sys.executable, "-c", _IMPORTS], logs / "0-imports.log", setting.allow(240))
    lines = imports.output.strip().splitlines()
    doctor = run(
        [sys.executable, "-m", "synthia_batch", "doctor", "--json"], logs / "0-doctor.log", setting.allow(240)
    )
    found: Any = None
    if "{" in doctor.output:
        found, _ = json.JSONDecoder().raw_decode(doctor.output[doctor.output.index("{") :])
    result = Result(
        must={"imports work": imports.code == 0, "doctor answers": found is not None},
        numbers={
            "imports": lines[-1] if lines else "",
            "cards": list(name_gpus()),
            "memory_gb": [round(size / 1e9, 1) for size in list_gpu_memory()],
            "driver": name_driver(),
            "compiler": shutil.which("gcc") or shutil.which("clang"),
            "nvcc": shutil.which("nvcc"),
            "doctor": _read_checks(found) if found else doctor.output,
        },
    )
    if not setting.is_rehearsal:
        result.must["a GPU is there"] = bool(name_gpus())
    return result


def _read_checks(found: Any) -> dict[str, str]:
    """Return what `doctor` said by check, without the home directory's name, which is nobody else's."""
    texts = {check["name"]: f"{check['state']}: {check['text']}" for check in found["checks"]}
    return {name: text.replace(f"{Path.home()}/", "~/") for name, text in texts.items()}
