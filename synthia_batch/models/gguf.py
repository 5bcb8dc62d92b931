"""GGUF files: finding one by name, joining its parts, and preparing a directory for engines.

On CPUs vLLM cannot read GGUF: the file is dequantized once to a directory in the user's cache. On GPUs
vllm-gguf-plugin reads the file itself, and the directory only holds config and tokenizer.
"""

import logging
import re
import shutil
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.cache import KeptDirectory, find_user_cache
from synthia_batch.core.digest import DigestCache, digest_file, digest_json, measure_once
from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.models.gguf_convert import convert_gguf, require_converter
from synthia_batch.models.gguf_header import GgufHeader

_log = logging.getLogger(__name__)

SUFFIX = ".gguf"
CONVERSION = 1
"""Increment when the conversion changes: a run's identity includes the weights."""
_PART = re.compile(r"(?P<whole>.+\.gguf)-split-(?P<letter>[a-z])")
_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<quantization>[\w.-]+)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_MOST_BITS_BEYOND_NAME = 2
"""Bits per weight beyond those in a file's name, for scales and unquantized layers, at most (Q4 takes 5.8 in
the embedded model's file, 4.8 in the 70B's Q4_K_M)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A GGUF file on the Hub, as `REPOSITORY:QUANTIZATION` names it."""

    repo_id: str
    quantization: str


def parse_hub_name(name: str) -> HubFile | None:
    """Return the parts of `name` if it is `REPOSITORY:QUANTIZATION`, else None."""
    found = _ON_HUB.fullmatch(name)
    return HubFile(repo_id=found["repo"], quantization=found["quantization"]) if found else None


def find_local_parts(path: Path) -> tuple[Path, ...]:
    """Return the GGUF file `path`, or the parts that it is split into; () if it is neither."""
    part = _PART.fullmatch(path.name)
    whole = path.with_name(part["whole"]) if part else path
    if whole.suffix.lower() != SUFFIX:
        return ()
    if whole.is_file():
        return (whole,)
    names = [file.name for file in whole.parent.glob("*") if _PART.sub(r"\g<whole>", file.name) == whole.name]
    return tuple(whole.parent / name for name in _order_parts(names)) if names else ()


def choose_files(files: Sequence[str], wanted: HubFile) -> tuple[str, ...]:
    """Return the one file of a repository with the wanted quantization, or its parts in order.

    Raises:
        ModelUnavailable: No file or several files have it.
    """
    pattern = re.compile(rf"(?:.*[.\-_/])?{re.escape(wanted.quantization)}\.gguf", re.IGNORECASE)
    whole = [name for name in files if pattern.fullmatch(name)]
    parts = [name for name in files if (part := _PART.fullmatch(name)) and pattern.fullmatch(part["whole"])]
    if len(whole) > 1 or (not whole and len({_PART.sub(r"\g<whole>", name) for name in parts}) > 1):
        raise ModelUnavailable(
            f"--model {wanted.repo_id}:{wanted.quantization}: several files match "
            f"({', '.join(whole or parts)}); download the one you want, and pass it as --model FILE.gguf"
        )
    if whole:
        return (whole[0],)
    if parts:
        return _order_parts(parts)
    raise ModelUnavailable(
        f"--model {wanted.repo_id}:{wanted.quantization}: no such GGUF file; "
        f"available: {', '.join(list_quantizations(files)) or 'none'}"
    )


def list_quantizations(files: Sequence[str]) -> list[str]:
    """Return the last word of each GGUF file name, which is usually its quantization."""
    names = [_SHARD.sub(SUFFIX, _PART.sub(r"\g<whole>", name)) for name in files]
    stems = [name[: -len(SUFFIX)] for name in names if name.lower().endswith(SUFFIX)]
    return sorted({re.split(r"[.\-/]", stem)[-1] for stem in stems})


def estimate_dequantized_bytes(file_bytes: int, quantization: str) -> int:
    """Return the least size of a file's weights in bfloat16, estimated from its name."""
    digits = re.search(r"\d+", quantization)
    bits = int(digits[0]) if digits else 16
    return int(file_bytes * 16 / (bits + _MOST_BITS_BEYOND_NAME)) if bits < 16 else file_bytes


def join_parts(parts: Sequence[Path], cache: DigestCache) -> Path:
    """Return one file with the concatenated `parts`; a single part is returned as it is.

    The joined file is stored in the user's cache. Source: the Synthia-70B-GGUF card, "To join the files".

    Raises:
        ModelUnavailable: The cache is not writable or full.
    """
    if len(parts) == 1:
        return parts[0]
    name = _PART.sub(r"\g<whole>", parts[0].name)
    mark = digest_json([digest_file(part, cache) for part in parts])[:16]
    kept = KeptDirectory(path=find_user_cache() / "gguf" / mark, what=name, measure=measure_once)

    def build(target: Path) -> None:
        _log.info(f"joining {len(parts)} parts of {name} in {kept.path}")
        target.mkdir()
        _concatenate(parts, target / name)

    try:
        return kept.prepare(build) / name
    except OSError as exc:
        raise ModelUnavailable(
            f"{name}: its parts cannot be joined in {kept.path}: {exc}; "
            "free space there, or set XDG_CACHE_HOME to another directory"
        ) from exc


def prepare_directory(source: Path, header: GgufHeader, cache: DigestCache, *, with_weights: bool) -> Path:
    """Return the cached directory that engines read for the GGUF file `source`, created once.

    Raises:
        ModelUnavailable: The file cannot be converted, or the cache is not writable or full.
    """
    if header.parts > 1:
        raise ModelUnavailable(
            f"{source}: one of {header.parts} files from gguf-split; join them with "
            "`llama-gguf-split --merge FIRST WHOLE.gguf`, and pass that file"
        )
    kind = "bf16" if with_weights else "described"
    mark = digest_file(source, cache)[:16]
    kept = KeptDirectory(
        path=find_user_cache() / "models" / f"gguf-{mark}-{kind}-{CONVERSION}",
        what=source.name,
        measure=measure_once,
    )

    def build(target: Path) -> None:
        require_converter()
        size = f", {header.dequantized_bytes / 1e9:.1f} GB in bfloat16" if with_weights else ""
        _log.info(f"converting {source.name} to {kept.path}{size}; later runs reuse it")
        convert_gguf(source, target, with_weights=with_weights)

    try:
        return kept.prepare(build)
    except OSError as exc:
        raise ModelUnavailable(
            f"{source.name} cannot be stored in {kept.path.parent}: {exc}; free "
            f"{header.dequantized_bytes / 1e9:.1f} GB there, or set XDG_CACHE_HOME to another directory"
        ) from exc


def _order_parts(names: Sequence[str]) -> tuple[str, ...]:
    ordered = sorted(names)
    letters = [part["letter"] if (part := _PART.fullmatch(name)) else name for name in ordered]
    expected = list(string.ascii_lowercase[: max(2, len(letters))])
    if letters != expected:
        missing = next((letter for letter in expected if letter not in letters), "a")
        raise ModelUnavailable(
            f"{ordered[0]}: the part -split-{missing} is missing; download it to the same directory"
        )
    return tuple(ordered)


def _concatenate(parts: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole, 2**24)
