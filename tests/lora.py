"""A small LoRA adapter in peft's format, for tests of engines."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

TARGETS = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}


def make_adapter(
    target_dir: Path, model_dir: Path, *, rank: int = 8, seed: int = 0, size: float = 0.05
) -> Path:
    """Write an adapter of random matrices for the Llama model in `model_dir`; return `target_dir`.

    `size` is the standard deviation of both matrices: at 0.05 the model says something else.
    """
    config = json.loads((model_dir / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv_size = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"q_proj": (hidden, hidden), "v_proj": (hidden, kv_size), "down_proj": (inner, hidden)}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, part in TARGETS.items():
            inputs, outputs = shapes[name]
            stem = f"base_model.model.model.layers.{layer}.{part}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * size
            tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * size
    target_dir.mkdir(parents=True)
    save_file(tensors, target_dir / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(TARGETS),
        "bias": "none",
        "base_model_name_or_path": str(model_dir),
    }
    (target_dir / "adapter_config.json").write_text(json.dumps(said))
    return target_dir
