"""What a run has published, read back a part at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.errors import UsageError
from synthia_batch.export.samples import FailedSample, FinishedSample
from synthia_batch.rows import Message
from synthia_batch.store.manifest import Manifest, read_manifest
from synthia_batch.store.part import read_part
from synthia_batch.store.part_columns import read_part_facts
from synthia_batch.store.plan_file import no_run_error
from synthia_batch.store.run_dir import RunDir

_COLUMNS = (
    "id", "row_index", "sample_index", "system", "messages", "response", "reasoning", "finish_reason",
    "prompt_tokens", "completion_tokens", "model",
)  # fmt: skip
_FAILED_COLUMNS = ("id", "row_index", "sample_index", "code", "message", "messages")


@dataclass(frozen=True, slots=True)
class Contents:
    """The parts of a complete run. Holds no rows: each reading streams them, a part at a time."""

    directory: Path
    manifest: Manifest

    def read_finished(
        self, kept: Sequence[str] = (), *, with_logprobs: bool = False
    ) -> Iterator[FinishedSample]:
        """Yield the rows of data/ in order, with the columns `kept` of the input.

        `with_logprobs`: with those, too, where the run has them.

        Raises:
            UsageError: The run has kept no such column.
            IntegrityError: A part is missing or altered.
        """
        for path in self._list_parts("data"):
            has_logprobs = with_logprobs and "logprobs" in dict(read_part_facts(path).columns)
            columns = (*_COLUMNS, "logprobs") if has_logprobs else _COLUMNS
            for row in self._read(path, dict.fromkeys((*columns, *kept))):
                own = {name: row[name] for name in kept}
                ours = {name: row[name] for name in columns}
                yield FinishedSample(**{**ours, "messages": _read_messages(row["messages"])}, kept=own)

    def read_failed(self) -> Iterator[FailedSample]:
        """Yield the rows of failed/ in order.

        Raises:
            IntegrityError: A part is missing or altered.
        """
        for path in self._list_parts("failed"):
            for row in self._read(path, _FAILED_COLUMNS):
                yield FailedSample(**{**row, "messages": _read_messages(row["messages"])})

    def _list_parts(self, folder: str) -> list[Path]:
        parts = (self.directory / part.path for part in self.manifest.parts)
        return [path for path in parts if path.parent.name == folder]

    def _read(self, path: Path, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
        table = read_part(path, tuple(columns))
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise UsageError(
                f"{path} has no column {missing[0]!r}; it has what the run was told to keep: "
                f"run it with --keep-columns {missing[0]}"
            )
        for batch in table.to_batches(max_chunksize=256):
            yield from batch.to_pylist()


def open_contents(directory: Path) -> Contents:
    """Return what the complete run in `directory` holds.

    Raises:
        UsageError: It is no run directory, or its run is not complete.
        IntegrityError: Its manifest was altered.
    """
    run_dir = RunDir(directory)
    manifest = read_manifest(run_dir.manifest)
    if manifest is not None:
        return Contents(directory, manifest)
    if not run_dir.plan.exists():
        raise no_run_error(directory)
    raise UsageError(
        f"{directory} is not complete: run its command again first; "
        f"`synthia-batch status {directory}` says how far it is"
    )


def _read_messages(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)
