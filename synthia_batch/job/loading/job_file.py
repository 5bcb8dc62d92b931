"""Read a job file as a layer whose relative paths are joined to the file's directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.job.keys import anchor_paths, is_section
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.loading.trust import is_own_file
from synthia_batch.job.loading.yaml_positions import read_marked
from synthia_batch.job.schema import Job

MOST_BYTES = 1_000_000
"""A larger file is data that was mistaken for a job file."""


def read_job_file(path: Path) -> Layer:
    """Return the layer of the job file at `path`, its relative paths joined to the file's directory.

    Faults of single keys are in the layer: `merge_layers` reports them with all others. Of a pipeline, the
    layer has `stages`.
    """
    marked = read_marked(_read_text(path), str(path))
    stages = marked.values.get("stages")
    values = _read_values(marked.values, path.parent)
    if isinstance(stages, list):
        values["stages"] = [
            _read_values(stage, path.parent) if isinstance(stage, dict) else stage for stage in stages
        ]
    return Layer(
        origin=f"job file {path}",
        values=values,
        places=marked.places,
        faults=marked.faults,
        is_own=is_own_file(path),
    )


def _read_values(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values of a job with paths joined to `folder`; an empty section sets nothing."""
    filled = {
        key: value
        for key, value in values.items()
        # A section with all its lines commented out sets nothing.
        if value is not None or not is_section(Job.model_fields.get(key))
    }
    return anchor_paths(filled, folder)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(
                f"{path}: {path.stat().st_size:,} bytes are no job file; an input ends in .jsonl or .parquet"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8 at byte {exc.start}; save it as UTF-8 and run again") from exc
    except OSError as exc:
        raise UsageError(
            f"{path}: cannot be read: {exc.strerror}; name an existing job file, or write one with "
            "`synthia-batch init INPUT -o FILE`"
        ) from exc
