"""The model of a job, its preset, and the format of its prompts.

A model that cannot be used is refused here, before its weights are downloaded or loaded.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.digest import DigestCache
from synthia_batch.core.errors import ModelElsewhere, UsageError
from synthia_batch.core.hardware import detect_device, list_gpu_memory, total_memory_bytes
from synthia_batch.job.loading.merge import Layer, Merged
from synthia_batch.job.presets import Preset, find_preset, list_presets, read_preset
from synthia_batch.job.resolved import AdapterChoice, Device, FormatName, LoraAdapter, ModelRef, PromptSpec
from synthia_batch.job.schema import Job
from synthia_batch.models.checkpoint import ModelFacts, Quantization, read_model_facts
from synthia_batch.models.gguf import estimate_dequantized_bytes, parse_hub_name
from synthia_batch.models.locate import LocateOptions, ModelPreview, digest_model, locate_model
from synthia_batch.models.lora import read_adapter

GGUF_PLUGIN = "vllm_gguf_plugin"
_OF_CARDS: Mapping[str, FormatName] = {"synthia": "synthia", "synthia-card": "synthia-card"}
"""The formats that need no template."""
_QUANTIZED_BEFOREHAND = ("awq", "gptq", "compressed-tensors", "gguf")
"""Methods, by words in their names, that vLLM can read from checkpoints but not apply itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPreset:
    """The preset of a job, None for an engine without a model, and the layers including the preset's."""

    preset: Preset | None
    layers: Sequence[Layer]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """The model of a job and the facts in its files; these are empty for an engine without a model."""

    ref: ModelRef
    facts: ModelFacts | None
    digests: Mapping[str, str]
    adapters: tuple[LoraAdapter, ...]


def add_preset(merged: Merged) -> ChosenPreset:
    """Return the preset that the user or the model's name selects, and the layers with its own added."""
    job, layers = merged.job, merged.layers
    model = job.model.name if merged.is_explicit("model.name") else None
    if job.preset is None and model is None and job.engine.kind != "vllm":
        return ChosenPreset(preset=None, layers=layers)
    with merged.locate_errors("preset"):
        preset = find_preset(job.model.name) if job.preset is None else read_preset(job.preset)
    on_gpu = job.engine.kind != "openai" and choose_device(job) == "cuda"
    layer = preset.make_layer(model, on_gpu=on_gpu, found=job.preset is None)
    if job.chat_template is not None:  # A template that is set is used.
        named = Layer(origin="--chat-template", values={"prompt_format": "chat"}, is_explicit=False)
        layers = (*layers, named)
    return ChosenPreset(preset=preset, layers=[*layers, layer])


def choose_device(job: Job) -> Device:
    return detect_device() if job.engine.device == "auto" else job.engine.device


def find_model(merged: Merged, preset: Preset | None, cache: DigestCache) -> FoundModel:
    """Return the job's model, downloaded if necessary."""
    job = merged.job
    adapters = _find_adapters(job, cache)
    # A rehearsal does not download a preset's model.
    if job.engine.kind == "scripted" and not merged.is_explicit("model.name"):
        ref = ModelRef(name="scripted", path=None, repo_id=None, revision=None, trust_remote_code=False)
        return FoundModel(ref=ref, facts=None, digests={}, adapters=adapters)
    if job.engine.kind == "openai":  # The model is on the server.
        name, revision = job.model.name, job.model.revision
        ref = ModelRef(name=name, path=None, repo_id=None, revision=revision, trust_remote_code=False)
        return FoundModel(ref=ref, facts=None, digests={}, adapters=())

    def check(preview: ModelPreview) -> None:
        if preview.describes_itself:
            refuse_without_format(job, preview.name, preview.chat_template)
        if job.engine.kind == "vllm":
            _refuse_without_room(job, preset, preview)

    if job.engine.kind == "vllm":
        _refuse_beyond_memory(job, preset)
    by_card = preview_by_card(preset, job.model.name, choose_device(job))
    if by_card is not None:  # Before asking the Hub, which may be unreachable.
        check(by_card)
    options = LocateOptions(device=choose_device(job), check=check)
    located = locate_model(job.model.name, job.model.revision, options)
    facts = read_model_facts(located.path)
    if located.gguf is not None:
        _refuse_without_plugin(job, located.name)
        facts = dataclasses.replace(facts, quantization=Quantization(method="gguf", detail=located.gguf.name))
    refuse_without_format(job, located.name, facts.chat_template)
    _refuse_other_quantization(job, located.name, facts)
    alone = adapters[0].name if len(adapters) == 1 and job.lora.column is None else None
    ref = ModelRef(
        name=f"{located.name}+{alone}" if alone else located.name,
        path=located.path,
        repo_id=located.repo_id,
        revision=located.revision,
        trust_remote_code=job.model.trust_remote_code,
        gguf=located.gguf,
    )
    digests = digest_model(located.path, cache, gguf=located.gguf)
    return FoundModel(ref=ref, facts=facts, digests=digests, adapters=adapters)


def assume_model(job: Job) -> FoundModel:
    """Return the model of `job` without its files: for a look at a job that another machine will run."""
    ref = ModelRef(
        name=job.model.name,
        path=None,
        repo_id=job.model.name,
        revision=job.model.revision,
        trust_remote_code=job.model.trust_remote_code,
    )
    return FoundModel(ref=ref, facts=None, digests={}, adapters=())


def choose_format(job: Job, found: FoundModel) -> PromptSpec:
    """Return the format of the job's prompts.

    Raises:
        UsageError: The template cannot be read, or the prompt format uses none.
    """
    facts = found.facts
    own = _read_template_file(job)
    template = own if own is not None else facts.chat_template if facts else None
    if job.prompt_format in _OF_CARDS:
        if own is not None:
            raise UsageError(
                f"--chat-template {job.chat_template}: prompt_format={job.prompt_format} uses no template; "
                "add --set prompt_format=chat, or leave the template out"
            )
        template = None
    return PromptSpec(
        format=_OF_CARDS.get(job.prompt_format, "plain" if template is None else "chat"),
        template=template,
        special_tokens=facts.special_tokens if facts else {},
        tokenizer=facts.tokenizer_path if facts else None,
        kwargs=job.chat_template_kwargs,
        day=job.template_date,
    )


def choose_adapter(job: Job) -> AdapterChoice:
    """Return which of the job's adapters answers a row.

    Raises:
        UsageError: There are several, and no column to choose by.
    """
    known = tuple(job.lora.adapters)
    if job.lora.column is not None and not known:
        raise UsageError(
            f"--lora-column {job.lora.column}: there are no adapters; name them with --lora NAME=PATH"
        )
    if len(known) > 1 and job.lora.column is None:
        raise UsageError(
            f"--lora: {', '.join(known)}: there are several adapters; name the column that chooses one for "
            "each row with --lora-column, or only one adapter"
        )
    alone = known[0] if known and job.lora.column is None else None
    column = job.lora.column and job.input.rename_columns.get(job.lora.column, job.lora.column)
    return AdapterChoice(name=alone, column=column, known=known)


def preview_by_card(preset: Preset | None, model: str, device: Device) -> ModelPreview | None:
    """Return a preview from the card's table of the GGUF file `model` on the Hub, or None."""
    wanted = parse_hub_name(model)
    table = preset.memory_table if preset is not None and preset.knows(model) else ()
    named = wanted.quantization.lower() if wanted else None
    row = next((row for row in table if row.quantization.lower() == named), None)
    if row is None:
        return None
    size = int(row.size_gb * 1e9)
    weights = estimate_dequantized_bytes(size, row.quantization) if device == "cpu" else size
    return ModelPreview(name=model, describes_itself=False, weights_bytes=weights, is_gguf=True)


def refuse_without_format(job: Job, name: str, template: str | None) -> None:
    """Return if the job or the model's own `template` defines how prompts are written.

    Raises:
        UsageError: Neither does.
    """
    if template is not None or job.chat_template is not None or job.prompt_format in _OF_CARDS:
        return
    synthia = ", ".join(preset for preset in list_presets() if preset.startswith("synthia"))
    raise UsageError(
        f"{name}: the model has no chat template, so nothing says how it is to be asked; for a Synthia model "
        f"name its --preset ({synthia}), for any other its template with --chat-template FILE"
    )


def _read_template_file(job: Job) -> str | None:
    path = job.chat_template
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--chat-template {path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"--chat-template {path}: not UTF-8 (byte {exc.start}); save it as UTF-8") from exc


def _find_adapters(job: Job, cache: DigestCache) -> tuple[LoraAdapter, ...]:
    choose_adapter(job)
    return tuple(read_adapter(name, Path(path), cache) for name, path in job.lora.adapters.items())


def _refuse_without_room(job: Job, preset: Preset | None, preview: ModelPreview) -> None:
    """Return unless a GGUF file's weights are known to need more memory than an engine here can have."""
    device = choose_device(job)
    if not preview.is_gguf or preview.weights_bytes is None:
        return
    parts = job.pool.tensor_parallel_size * job.pool.pipeline_parallel_size
    room = total_memory_bytes() if device == "cpu" else sum(sorted(list_gpu_memory(), reverse=True)[:parts])
    if not room or preview.weights_bytes <= room:
        return
    where = "of RAM, dequantized to bfloat16" if device == "cpu" else f"of memory on {parts} GPU(s)"
    hint = "run it on GPUs, where they stay as they are" if device == "cpu" else "take more GPUs"
    lines = [
        f"{preview.name}: its weights take {preview.weights_bytes / 1e9:.1f} GB {where}, and there are "
        f"{room / 1e9:.1f} GB; {hint}, or take a smaller file or model"
    ]
    if preset is not None and preset.memory_table:
        lines.append("sizes from its model card (RAM as used by llama.cpp, without a GPU):")
        lines += [f"  {row}" for row in preset.memory_table]
    raise ModelElsewhere("\n".join(lines))


def _refuse_beyond_memory(job: Job, preset: Preset | None) -> None:
    """Return unless this machine computes on CPUs and has less memory than the card's weights take.

    This saves a download of 138 GB. On GPUs and clusters the engines' own memory counts; see `doctor`.
    """
    known = preset.facts.get("weights_gb") if preset is not None and preset.knows(job.model.name) else None
    if preset is None or known is None or choose_device(job) != "cpu" or job.pool.ray_address:
        return
    if Path(job.model.name).expanduser().exists():  # A local model of that name may be smaller.
        return
    if parse_hub_name(job.model.name) is not None or known.value * 1e9 <= total_memory_bytes():
        return
    facts = {name: entry.value for name, entry in preset.facts.items()}
    gpus = f"{facts.get('gpus_per_engine', 1)} GPU(s) of {facts.get('gpu_memory_gb', '?')} GB"
    raise ModelElsewhere(
        f"{job.model.name}: its weights take {known.value:.0f} GB, this machine has "
        f"{total_memory_bytes() / 1e9:.0f} GB of memory and no GPU that the installed vLLM computes on; "
        f"nothing was fetched. Run it on {gpus}, take a smaller or quantized model (`synthia-batch "
        "presets`), or rehearse the job with --engine scripted --pool local"
    )


def _refuse_without_plugin(job: Job, name: str) -> None:
    if job.engine.kind == "vllm" and importlib.util.find_spec(GGUF_PLUGIN) is None:
        raise UsageError(
            f"{name}: on GPUs vLLM reads GGUF files by a plugin, which is not installed; "
            "run: pip install 'synthia-batch[cuda,gguf]'"
        )


def _refuse_other_quantization(job: Job, name: str, facts: ModelFacts) -> None:
    method = job.model.quantization
    if method is None or facts.quantization is not None:
        return  # vLLM compares the two, and knows which are equivalent.
    if any(word in method for word in _QUANTIZED_BEFOREHAND):
        raise UsageError(
            f"model.quantization={method}: {name} is not quantized, according to its config.json; remove the "
            f"key, or name a quantized checkpoint"
        )
