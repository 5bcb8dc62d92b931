"""The job as last set by the user, saved with its run: `retry` and `verify --rerun` run it again.

It is not part of the run's identity or output: it holds paths and speeds, and follows the latest attempt.
"""

from contextlib import suppress
from pathlib import Path

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.errors import IntegrityError
from synthia_batch.job.keys import anchor_paths
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.loading.secrets import drop_written_secrets
from synthia_batch.job.schema import Job
from synthia_batch.storage.atomic import publish_bytes


def write_job(path: Path, job: Job) -> None:
    """Save the explicitly set keys of `job` at `path`, with absolute paths, unless they are there already.

    Secrets are saved as references to the environment, or not at all. A job that JSON cannot represent,
    such as one with a file name that is not UTF-8, is not saved.
    """
    try:
        explicit = drop_written_secrets(job.model_dump(mode="json", exclude_unset=True))
        content = encode_checksummed({"job": anchor_paths(explicit, Path.cwd())})
    except ValueError:
        return
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    publish_bytes(path, content)


def read_job(path: Path, output: Path) -> Layer | None:
    """Return the explicitly set keys of the job saved at `path`, with `output` as its run directory.

    None if no job is saved. Raises IntegrityError.
    """
    value = read_checksummed(path)
    if value is None:
        return None
    if not isinstance(value.get("job"), dict):
        raise IntegrityError(f"{path} holds no job\n  run the job itself again: that saves it")
    job = value["job"]
    if "://" in str(job.get("output")):
        values = {**job, "store": {**job.get("store", {}), "state": str(output)}}
    else:
        values = {**job, "output": str(output)}
    return Layer(origin="the run", values=values)
