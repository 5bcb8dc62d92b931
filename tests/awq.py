"""A 4-bit AWQ checkpoint made of an unquantized one, for tests of engines.

Plain rounding to the nearest of 16 steps, without the calibration that gives AWQ its quality: the
file format and the kernels are the same, the answers are worse. Needs torch and safetensors only.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BITS = 4
GROUP_SIZE = 64
"""Weights of one output that share a scale and a zero point. It divides SmolLM2's 576 and 1,536."""
PACKED = 32 // BITS
PACKING_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's "gemm" layout: which of eight neighbouring columns comes next in an int32, lowest bits first."""
QUANTIZATION = {
    "quant_method": "awq",
    "bits": BITS,
    "group_size": GROUP_SIZE,
    "version": "gemm",
    "zero_point": True,
}


def make_awq_checkpoint(source_dir: Path, target_dir: Path) -> Path:
    """Write the model of `source_dir` to `target_dir`, its layers' weights quantized; return `target_dir`.

    `source_dir` has its weights in safetensors. Embeddings, norms and an untied head stay as they are.
    Takes seconds for 135M parameters.
    """
    target_dir.mkdir(parents=True)
    for path in source_dir.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copy(path, target_dir)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source_dir.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            tensors |= quantize(name, tensor) if is_quantized(name, tensor) else {name: tensor}
    save_file(tensors, target_dir / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source_dir / "config.json").read_text())
    (target_dir / "config.json").write_text(
        json.dumps({**config, "quantization_config": QUANTIZATION}, indent=2)
    )
    return target_dir


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    return ".layers." in name and name.endswith("_proj.weight") and tensor.ndim == 2


def quantize(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the three tensors of a quantized linear layer, of a weight [outputs, inputs].

    qweight [inputs, outputs / 8] and qzeros [groups, outputs / 8] are int32, scales [groups, outputs]
    float16; a weight is (q - zero) * scale.
    """
    outputs, inputs = weight.shape
    groups = weight.float().t().reshape(inputs // GROUP_SIZE, GROUP_SIZE, outputs)
    # Zero is among the steps, as AWQ has it: the range is made to hold it.
    low, high = groups.amin(dim=1).clamp(max=0), groups.amax(dim=1).clamp(min=0)
    top = 2**BITS - 1
    scales = ((high - low).clamp(min=1e-5) / top).half()
    zeros = (-low / scales.float()).round().clamp(0, top)
    steps = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, top)
    stem = name.removesuffix("weight")
    return {
        f"{stem}qweight": pack(steps.reshape(inputs, outputs)),
        f"{stem}qzeros": pack(zeros),
        f"{stem}scales": scales.contiguous(),
    }


def pack(values: torch.Tensor) -> torch.Tensor:
    """Return `values` [rows, columns], 0 to 15, as int32 [rows, columns / 8]."""
    eight = values.to(torch.int64).reshape(values.shape[0], -1, PACKED)[:, :, list(PACKING_ORDER)]
    shifts = torch.arange(0, 32, BITS)
    words = (eight << shifts).sum(dim=-1)
    # The highest bit is the sign's.
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()
