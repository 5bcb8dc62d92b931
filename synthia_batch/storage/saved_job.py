"""The job as it was last said, kept with its run: what `retry` runs again.

No part of the run's identity or of its output: it holds paths and speeds, and follows the latest
attempt, since that is the one that got on.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from synthia_batch.errors import IntegrityError
from synthia_batch.job.loading.job_file import ADDRESS, ENGINE_PATHS, STDIN
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.loading.secrets import drop_written_secrets
from synthia_batch.job.schema import DEMO_MODEL, Job
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.checksummed_json import encode_checksummed, read_checksummed


def write_job(path: Path, job: Job) -> None:
    """Keep what was said of `job` at `path`, its paths absolute, unless just that is there.

    Secrets are kept as references to the environment, or not at all.

    A job that JSON cannot say, with a file name that is no UTF-8, is not kept.

    Raises:
        StorageFailed: It could not be written.
    """
    try:
        said = drop_written_secrets(job.model_dump(mode="json", exclude_unset=True))
        content = encode_checksummed({"job": _anchor(said)})
    except ValueError:
        return
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    publish_bytes(path, content)


def read_job(path: Path, output: Path) -> Layer | None:
    """Return what was said of the job kept at `path`, with `output` as its run directory.

    None where no job is kept.

    Raises:
        IntegrityError: The file was altered.
    """
    value = read_checksummed(path)
    if value is None:
        return None
    if not isinstance(value.get("job"), dict):
        raise IntegrityError(
            f"{path} holds no job\n  run the job itself once, as it was said: it is kept anew"
        )
    job = value["job"]
    if "://" in str(job.get("output")):
        values = {**job, "store": {**job.get("store", {}), "state": str(output)}}
    else:
        values = {**job, "output": str(output)}
    return Layer(origin="the run", values=values)


def _anchor(values: dict[str, Any]) -> dict[str, Any]:
    """Return what was said, with its paths as they are from anywhere."""
    state = values.get("store", {}).get("state")
    if state is not None:
        values["store"] = {**values["store"], "state": os.path.abspath(state)}
    section = values["input"]
    values["input"] = {**section, "path": _anchor_input(section["path"])}
    if section.get("prompt_template") is not None:
        values["input"]["prompt_template"] = os.path.abspath(section["prompt_template"])
    if values.get("chat_template") is not None:
        values["chat_template"] = os.path.abspath(values["chat_template"])
    if "system" in values:
        values["system"] = [_anchor_file(spec) for spec in values["system"]]
    name = values.get("model", {}).get("name")
    if name is not None and name != DEMO_MODEL and Path(name).expanduser().exists():
        values["model"] = {**values["model"], "name": str(Path(name).expanduser().resolve())}
    adapters = values.get("lora", {}).get("adapters")
    if adapters:
        paths = {name: os.path.abspath(path) for name, path in adapters.items()}
        values["lora"] = {**values["lora"], "adapters": paths}
    engine = values.get("engine", {})
    files = {key: os.path.abspath(engine[key]) for key in ENGINE_PATHS if isinstance(engine.get(key), str)}
    if files:
        values["engine"] = {**engine, **files}
    return values


def _anchor_input(path: Any) -> Any:
    if isinstance(path, list | tuple):
        return [_anchor_input(entry) for entry in path]
    return path if path == STDIN or ADDRESS.match(path) else os.path.abspath(path)


def _anchor_file(spec: str) -> str:
    return "@" + os.path.abspath(spec[1:]) if spec.startswith("@") else spec
