"""What `doctor` finds out about a machine for GPU engines; none is needed."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synthia_batch.operations import doctor, gpu_machine
from synthia_batch.operations.gpu_machine import (
    TorchBuild,
    check_compiler,
    check_driver,
    check_headers,
    check_import,
    check_shared_memory,
    examine_gpu_machine,
    name_other_gpus,
    read_torch_build,
)


@pytest.mark.parametrize(
    ("driver", "cuda", "state"),
    [
        ("580.65.06", "13.0", "ok"),
        ("575.57.08", "13.0", "bad"),
        ("575.57.08", "12.9", "ok"),
        ("510.47", "12.8", "bad"),
        ("", "13.0", "bad"),
        ("580.1", None, "unknown"),
        ("600.1", "14.0", "unknown"),
    ],
)
def test_a_driver_must_be_as_new_as_torchs_cuda(driver: str, cuda: str | None, state: str) -> None:
    found = check_driver(driver, cuda)
    assert found.state == state
    if driver and state == "bad":
        assert "or newer; update the driver" in found.text


def make_tool(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_a_c_compiler_is_found_as_triton_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert check_compiler().state == "bad"
    make_tool(tmp_path, "clang")
    assert check_compiler().text.endswith("/clang")
    make_tool(tmp_path, "gcc")
    assert check_compiler().text.endswith("/gcc")
    monkeypatch.setenv("CC", "missing-cc")
    assert check_compiler().state == "bad"


def test_pythons_headers_are_looked_for(tmp_path: Path) -> None:
    missing = check_headers(tmp_path)
    assert (missing.state, "python3-dev" in missing.text) == ("bad", True)
    (tmp_path / "Python.h").touch()
    assert check_headers(tmp_path).state == "ok"


@pytest.mark.parametrize(("free", "state"), [(64 * 2**20, "bad"), (2 * 10**9, "ok")])
def test_containers_with_little_shared_memory_are_told_how_to_have_more(
    free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    found = check_shared_memory(tmp_path)
    assert found.state == state
    assert ("--shm-size" in found.text) == (state == "bad")


def test_vllm_and_its_kernels_are_really_imported() -> None:
    assert check_import("print('0.32.0')").text == "0.32.0 and its kernels load"
    broken = check_import("import sys; sys.exit('ImportError: libcudart.so.13: cannot open')")
    assert broken.state == "bad"
    assert "libcudart.so.13" in broken.text
    beside = check_import("import sys; sys.exit('RuntimeError: operator torchvision::nms does not exist')")
    assert "needs none of torchvision, torchaudio, torchcodec: uninstall them" in beside.text
    assert check_import("import time; time.sleep(60)", timeout_seconds=0.5).state == "unknown"


def test_only_engines_of_several_gpus_need_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine, "read_torch_build", lambda: TorchBuild(cuda="13.0", maker=None))
    monkeypatch.setattr(gpu_machine, "name_driver", lambda: "580.1")
    monkeypatch.setattr(gpu_machine, "_IMPORT", "print('0.33.0')")
    names = ["driver", "compiler", "python headers", "vllm"]
    assert [found.name for found in examine_gpu_machine(1)] == names
    assert [found.name for found in examine_gpu_machine(2)] == [*names[:3], "shared memory", "vllm"]


@pytest.mark.parametrize(
    ("lines", "build"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", TorchBuild(cuda="13.0", maker=None)),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '7.0'\n", TorchBuild(cuda=None, maker="AMD")),
        ("cuda: Optional[str] = None\nxpu: Optional[str] = '2025'\n", TorchBuild(cuda=None, maker="Intel")),
    ],
)
def test_torchs_build_is_read_without_importing_it(
    lines: str, build: TorchBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch" / "version.py").write_text(f"from typing import Optional\n{lines}")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert read_torch_build() == build


def test_gpus_of_other_makers_are_named_and_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, vendor in enumerate(("0x1002", "0x10de", "0x8086")):
        device = tmp_path / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "device").write_text("0x74a1\n")
    assert name_other_gpus(tmp_path) == ("AMD GPU 0x74a1", "Intel GPU 0x74a1")
    monkeypatch.setattr(doctor, "read_torch_build", lambda: TorchBuild(cuda=None, maker="AMD"))
    monkeypatch.setattr(doctor, "name_other_gpus", lambda: name_other_gpus(tmp_path))
    monkeypatch.setattr(doctor, "name_gpus", lambda: ())
    check = doctor._check_gpus("cuda")
    assert check.state == "unknown"
    assert check.text.startswith("AMD GPU 0x74a1, Intel GPU 0x74a1; vLLM's build for AMD")


@pytest.mark.parametrize(
    ("version", "state"), [("0.25.0", "unknown"), ("0.33.0", "ok"), ("0.40.0", "unknown")]
)
def test_a_release_outside_of_the_range_is_named(version: str, state: str) -> None:
    check: Any = doctor._check_release(("vllm", version), "cuda")
    assert check.state == state
    assert ("0.26 to 0.33" in check.text) == (state == "unknown")
