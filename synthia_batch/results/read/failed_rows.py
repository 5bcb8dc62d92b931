"""What a run of the rows in failed/ has of the run that they are of, and what it has not."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthia_batch.job.dotted import flatten
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import find_pipeline
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.saved_job import read_job

_OF_ROWS = frozenset(
    {"input", "output", "store", "name", "system", "replace_system", "num_samples", "report"}
)
"""Keys of a job that say what its rows are, or where its output goes, and how it is told of."""
_ASKED = (
    ("turns", "the later turns"),
    ("tools", "the tools"),
    ("sampling", "the rows' own sampling parameters"),
    ("message_fields", "fields of messages such as tool calls"),
)
"""Columns of the input that are part of what is asked, and that failed/ does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRows:
    """The rows in failed/: whole conversations, a sample each, with their system messages.

    `settings` are the dotted keys with which a run of them is like theirs. Of what was asked, `lacks` names
    what they do not have: then only the whole job asks it again. `lost` names what the output of a run of
    them does not have. `is_stage`: their run is a stage of a pipeline, whose later stages would not read it.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    is_stage: bool = False

    def advise(self, place: str, key: str, value: Any) -> str:
        """Return how to ask the rows of the run in `place` again, with another `value` of `key`."""
        if self.is_stage:
            return f"set {key} of this stage in the pipeline's file and run it again: the stage is made anew"
        if self.lacks:
            lacking = " and ".join(self.lacks)
            return (
                f"failed/ does not have {lacking}: run the whole job into another directory (-o) with --set "
                f"{key}={value}"
            )
        without = f", without {' and '.join(self.lost)}," if self.lost else ""
        command = self._spell(place.rstrip("/") + "/failed", key, value)
        return f"run those rows{without} by themselves: {command}"

    def _spell(self, rows: str, key: str, value: Any) -> str:
        """Return the command that runs `rows` with the settings, but another `value` of `key`."""
        changed = {name: said for name, said in self.settings.items() if name != key} | {key: value}
        words = [
            f"{name}={said if isinstance(said, str) else json.dumps(said)}" for name, said in changed.items()
        ]
        flags = [part for word in words for part in ("--set", word)]
        return shlex.join(["synthia-batch", "run", rows, *flags])


def read_failed_rows(directory: Path) -> FailedRows:
    """Return what is known of the rows in failed/ of the run in `directory`.

    Raises:
        UsageError: `directory` is not a run directory.
        IntegrityError: Its saved job was altered.
    """
    run_dir = RunDir(directory)
    identity = require_plan(run_dir)["identity"]
    saved = read_job(run_dir.job, directory)
    job: Mapping[str, Any] = saved.values if saved else {}
    settings = flatten({key: value for key, value in job.items() if key not in _OF_ROWS})
    has_one = identity["num_samples"] == len(identity["system"]) == 1
    return FailedRows(
        settings={**settings, **_list_input_settings(identity, job, has_one=has_one)},
        lacks=tuple(_list_lacking(identity)),
        lost=tuple(_list_lost(identity["input"]["columns"], has_one=has_one)),
        is_stage=find_pipeline(directory) is not None,
    )


def _list_input_settings(
    identity: Mapping[str, Any], job: Mapping[str, Any], *, has_one: bool
) -> dict[str, Any]:
    """Return the settings by which the rows are read as they were asked."""
    columns, values = identity["input"]["columns"], {}
    if "preset" in job:
        values["system"] = "none"  # Each row has its own.
    if has_one:  # An id stands there once.
        values["input.id_column"] = "id"
    if columns.get("final") == "continue":
        values["input.final_assistant"] = "continue"
    if columns.get("bad_rows") == "fail":  # They have no conversation, and would have all refused.
        values["input.on_bad_row"] = "fail"
    if columns.get("generate_role") == "user":  # Nothing is read of the row, its system message neither.
        values |= {"input.generate_role": "user"} | ({"system": job["system"]} if "system" in job else {})
    return values


def _list_lacking(identity: Mapping[str, Any]) -> Iterator[str]:
    columns = identity["input"]["columns"]
    yield from (what for key, what in _ASKED if columns.get(key))
    if columns.get("shape") == "openai-batch":
        yield "the requests' own parameters"
    if identity.get("lora", {}).get("column") is not None:
        yield "the rows' adapters"
    if columns.get("generate_role") == "user" and (columns.get("system") or len(identity["system"]) > 1):
        yield "the system messages of rows that ask nothing"
    if identity.get("accept") and columns.get("keep"):
        yield "the columns that --accept may name"


def _list_lost(columns: Mapping[str, Any], *, has_one: bool) -> Iterator[str]:
    if columns.get("keep"):
        renamed = columns.get("renamed", {})
        yield f"the kept columns {', '.join(renamed.get(name, name) for name in columns['keep'])}"
    if not has_one:
        yield "their ids"  # Each may be there several times.
