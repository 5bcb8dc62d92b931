"""Which GPUs of a machine count: those that CUDA_VISIBLE_DEVICES leaves."""

from pathlib import Path

import pytest

from synthia_batch.core.hardware import (
    list_capabilities,
    list_gpu_memory,
    name_driver,
    name_gpus,
    select_visible,
)

GPUS = [("0", "GPU-aaaa1111"), ("1", "GPU-bbbb2222"), ("2", "GPU-bbcc3333")]
TOOL = """#!/bin/sh
case "$1" in
*=index,uuid,name) printf '0, GPU-aaaa, NVIDIA H200\\n1, GPU-bbbb, Tesla T4\\n' ;;
*=index,uuid,memory.total) printf '0, GPU-aaaa, 143771\\n1, GPU-bbbb, 15360\\n' ;;
*=index,uuid,compute_cap) printf '0, GPU-aaaa, 9.0\\n1, GPU-bbbb, 7.5\\n' ;;
*=name) printf 'NVIDIA H200\\nTesla T4\\n' ;;
*=driver_version) printf '580.65.06\\n580.65.06\\n' ;;
esac
"""


@pytest.mark.parametrize(
    ("visible", "positions"),
    [
        ("0,2", (0, 2)),
        ("2, 0", (2, 0)),
        ("GPU-bbbb", (1,)),
        ("GPU-aaaa1111,GPU-bbcc", (0, 2)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", (0,)),  # CUDA ignores what stands behind an unknown entry.
        ("MIG-5c9d", (0, 1, 2)),
        ("aaaa", ()),
    ],
)
def test_gpus_are_selected_as_cuda_does(visible: str, positions: tuple[int, ...]) -> None:
    assert select_visible(visible, GPUS) == positions


def test_only_visible_gpus_are_named_measured_and_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert name_gpus() == ("NVIDIA H200", "Tesla T4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert (name_gpus(), list_capabilities()) == (("NVIDIA H200",), ((9, 0),))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    assert name_gpus() == ("Tesla T4",)
    assert list_gpu_memory() == (15360 * 2**20,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert name_gpus() == ()
    assert name_driver() == "580.65.06", "the driver is there whatever is visible"
