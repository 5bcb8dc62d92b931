"""What a saved job may do by itself: a run directory, or a job file, may have been written by somebody else.

A key that sends data or secrets somewhere, writes outside of the run, or loads code is marked `Outward` in
the schema. Of a job that was saved with its run such keys count only if the user trusts that run.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.masking import is_masked
from synthia_batch.job.fields import ADDRESS, NUMBERED_ROWS
from synthia_batch.job.keys import walk_keys
from synthia_batch.job.loading.layer import Layer, find_layer, look_up, walk_texts
from synthia_batch.job.loading.secrets import ADDRESS_KEYS, mask_value
from synthia_batch.job.markers import Outward

VLLM_OUTWARD = (
    "additional_config", "aux_output_config", "compilation_config", "data_parallel_address",
    "distributed_executor_backend", "download_dir", "ec_manager_config", "ec_transfer_config",
    "fault_tolerance_config", "io_processor_plugin", "kv_events_config", "kv_transfer_config",
    "log_config_file", "logging_config", "logits_processors", "master_addr", "mm_encoder_fp8_scale_save_path",
    "model_class_overrides", "model_loader_extra_config", "otlp_traces_endpoint", "profiler_config",
    "reasoning_parser_plugin", "scheduler_cls", "weight_transfer_config", "worker_cls",
    "worker_extension_cls",
)  # fmt: skip
"""Settings of vLLM 0.32 that name code, addresses or files to write."""
OTHERS_FILE = (
    "others own this file or may write to it, so it gets no secrets of your environment; copy it to a file "
    "of your own, or set the key on the command line"
)
_NEEDED = ("input.path", "output", "engine.base_url")
"""Keys without which another job would run: they are asked for and not left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Untrusted:
    """A saved job's layer without its outward keys; `dropped` has those with their values, masked."""

    layer: Layer
    dropped: Mapping[str, Any]

    def describe(self) -> str:
        """Return the keys that were left out, with their values."""
        return ", ".join(f"{key} ({value})" for key, value in self.dropped.items())


def drop_outward(saved: Layer, explicit: Sequence[Layer]) -> Untrusted:
    """Return the `saved` layer without the outward keys that none of the `explicit` layers sets."""
    dropped: dict[str, Any] = {}
    values: Any = saved.values
    for key in _list_outward():
        value = look_up(values, key)
        if saved.sets(key) and _points_outward(key, value):
            values = _remove(values, key.split("."))
            if find_layer(key, explicit) is None:
                dropped[key] = mask_value(key, value)
    return Untrusted(layer=replace(saved, values=values), dropped=dropped)


def require_trust(found: Untrusted, directory: Path | str) -> None:
    """Return if the job can run without the keys that were left out.

    Raises:
        UsageError: It cannot: another input, endpoint or output would take their place.
    """
    needed = [key for key in _NEEDED if key in found.dropped]
    if needed:
        raise UsageError(
            f"{directory}: its saved job has {found.describe()}; a run directory may come from somebody "
            "else, so this is not used by itself: add --trust if the run is yours, or give "
            f"{' and '.join(f'--set {key}=...' for key in needed)}"
        )


def refuse_masked(layers: Sequence[Layer]) -> None:
    """Return if every address has its secrets.

    Raises:
        UsageError: One was saved without: only the user knows them.
    """
    for key in sorted(ADDRESS_KEYS):
        layer = find_layer(key, layers)
        for _, address in walk_texts(look_up(layer.values, key) if layer else None):
            if is_masked(address):
                raise UsageError(
                    f"{key}: {address} was saved without its secrets; set it with --set {key}=ADDRESS"
                )


def is_own_file(path: Path) -> bool:
    """Whether the file is this user's, or the system's, and only its owner's group may write to it."""
    found = path.stat()
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o002


def _list_outward() -> Iterator[str]:
    yield from (key.name for key in walk_keys() if key.find(Outward) is not None)
    yield from (f"engine.{name}" for name in VLLM_OUTWARD)


def _points_outward(key: str, value: Any) -> bool:
    """Whether the value does: an input or an output may as well be a path, and a switch may be off."""
    if key in ("input.path", "output"):
        texts = [text for _, text in walk_texts(value)]
        return any(ADDRESS.match(text) and not text.startswith(NUMBERED_ROWS) for text in texts)
    return value not in (None, False)


def _remove(values: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    name, *rest = parts
    if not rest:
        return {key: value for key, value in values.items() if key != name}
    return {**values, name: _remove(values[name], rest)}
