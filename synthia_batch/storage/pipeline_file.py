"""The stages of a pipeline, in order: `pipeline.json` in its directory, for whoever reads them later."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.storage.atomic import publish_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage that was played: its run's directory, by its name in `stages/`, and the stage that it reads."""

    name: str
    directory: str
    reads: str | None


def write_stages(path: Path, stages: Sequence[StageRecord]) -> None:
    """Write the stages to `path`, unless it has them already."""
    content = encode_checksummed({"stages": [asdict(stage) for stage in stages]})
    if not path.exists() or path.read_bytes() != content:
        publish_bytes(path, content)


def read_stages(path: Path) -> list[StageRecord] | None:
    """Return the stages at `path`, None if there is no pipeline.

    Raises:
        IntegrityError: The file was altered.
    """
    value = read_checksummed(path)
    return None if value is None else [StageRecord(**stage) for stage in value["stages"]]
