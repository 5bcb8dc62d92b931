"""The ledger of parts: the expected content of each published file, on disk before the file exists.

From it a run knows the checksum of every part without reading one, and can tell a missing, altered or
foreign part from one that was never written. Frames as in frames.py: a header, then one frame per
publication. A later frame of a shard replaces the earlier ones.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from synthia_batch.core.errors import IntegrityError
from synthia_batch.storage.atomic import publish_bytes, storage_errors
from synthia_batch.storage.journal.append_file import UNSYNCED, AppendFile
from synthia_batch.storage.journal.frames import Frame, encode_frame, scan_frames
from synthia_batch.storage.lock import WriterEpoch


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """The expected content of a published file. `sha256` is in hex, of the whole file.

    `rows_digest` is of its rows, whichever version of pyarrow wrote them.
    """

    sha256: str
    bytes: int
    rows: int
    rows_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """The parts of one shard, published in `epoch`. None if the shard has no such part."""

    shard: int
    epoch: int
    data: PartEntry | None
    failed: PartEntry | None

    @property
    def parts(self) -> tuple[PartEntry, ...]:
        return tuple(part for part in (self.data, self.failed) if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerContent:
    """The latest entry of each shard, by shard number.

    `kept_bytes` is the length of the valid frames. `is_doubtful`: the last sync failed, so the last frame
    may not be on disk.
    """

    latest: dict[int, ShardEntry]
    kept_bytes: int
    is_doubtful: bool = False


class PartLedger:
    """The open ledger. `latest` holds the latest entry of each shard, by shard number."""

    def __init__(self, file: AppendFile, latest: dict[int, ShardEntry], epoch: int) -> None:
        self.latest = latest
        self.epoch = epoch
        self._file = file

    @classmethod
    def open(cls, path: Path, writer: WriterEpoch) -> Self:
        """Read the ledger at `path`, or create it, and open it for appending.

        Raises:
            IntegrityError: As for read_ledger. Nothing was changed.
        """
        read = read_ledger(path, writer.plan_digest)
        if read.is_doubtful:
            # Rewrite through new pages: the kernel may have marked those of the old file clean.
            publish_bytes(path, _encode_ledger(writer.plan_digest, read.latest))
            read = read_ledger(path, writer.plan_digest)
        file = AppendFile.open(path, kept_bytes=read.kept_bytes)
        try:
            if read.kept_bytes == 0:
                file.append(encode_frame({"plan": writer.plan_digest}))
            # From here on at most one frame is not yet on disk, so even power loss can damage only the
            # last one.
            file.sync_with_name()
        except BaseException:
            file.close()
            raise
        return cls(file, read.latest, writer.epoch)

    def append(self, shard_entry: ShardEntry) -> None:
        """Record the expected content of a shard's parts, durably."""
        self._file.append(encode_frame(asdict(shard_entry)))
        # A part without an entry would be taken for a foreign file, so the entry is synced first.
        self._file.sync()
        self.latest[shard_entry.shard] = shard_entry

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()


def read_ledger(path: Path, plan_digest: str) -> LedgerContent:
    """Return the content of the ledger at `path`, without changing it. No file is an empty ledger.

    A torn last frame is dropped: its parts were not begun.

    Raises:
        IntegrityError: A frame before the last is damaged, or the ledger belongs to another plan.
    """
    latest: dict[int, ShardEntry] = {}
    kept_bytes = 0
    is_doubtful = False
    with storage_errors("read", path):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return LedgerContent(latest={}, kept_bytes=0)
        with file:
            frames = scan_frames(file)
            for frame in frames:
                if frame.value is None:
                    behind = [later.value for later in frames if later.value is not None]
                    # A failed sync was that of the last frame: all others were already on disk.
                    is_doubtful = bool(behind) and all(UNSYNCED in value for value in behind)
                    if behind and not is_doubtful:
                        raise _refuse(path, frame, "the frame fails its checksum")
                    break
                if UNSYNCED in frame.value:
                    is_doubtful = True
                elif frame.offset == 0:
                    _check_header(path, frame, frame.value, plan_digest)
                else:
                    shard_entry = _decode_frame(path, frame, frame.value)
                    latest[shard_entry.shard] = shard_entry
                kept_bytes = frame.stop
    return LedgerContent(latest=latest, kept_bytes=kept_bytes, is_doubtful=is_doubtful)


def repair_ledger(path: Path, writer: WriterEpoch, known: Mapping[int, ShardEntry]) -> None:
    """Rewrite the ledger from its valid frames and the `known` entries, by shard.

    A known entry overrides the frames. A shard whose frame is lost and which is not known loses its entry,
    and its parts count as foreign. Call it under the run's lock.
    """
    latest: dict[int, ShardEntry] = {}
    with storage_errors("read", path), path.open("rb") as file:
        for frame in scan_frames(file):
            if frame.value is not None and "plan" not in frame.value:
                with suppress(IntegrityError):
                    shard_entry = _decode_frame(path, frame, frame.value)
                    latest[shard_entry.shard] = shard_entry
    publish_bytes(path, _encode_ledger(writer.plan_digest, {**latest, **known}))


def decode_entry(value: Mapping[str, Any]) -> ShardEntry:
    """Return the entry of which `value` holds the fields."""
    return ShardEntry(
        shard=value["shard"],
        epoch=value["epoch"],
        data=value["data"] and PartEntry(**value["data"]),
        failed=value["failed"] and PartEntry(**value["failed"]),
    )


def _encode_ledger(plan_digest: str, latest: Mapping[int, ShardEntry]) -> bytes:
    frames = [encode_frame(asdict(shard_entry)) for _, shard_entry in sorted(latest.items())]
    return b"".join((encode_frame({"plan": plan_digest}), *frames))


def _check_header(path: Path, frame: Frame, value: dict[str, Any], plan_digest: str) -> None:
    if value.get("plan") != plan_digest:
        reason = f"the ledger belongs to another plan, {value.get('plan')}"
        raise IntegrityError(
            f"{path}: byte {frame.offset}: {reason}; nothing was touched\n"
            "  use the job as first specified, including its name and its input's, or another -o",
            reason=reason,
            offset=frame.offset,
        )


def _decode_frame(path: Path, frame: Frame, value: dict[str, Any]) -> ShardEntry:
    try:
        return decode_entry(value)
    except (KeyError, TypeError) as exc:
        raise _refuse(path, frame, "this version writes no such frame") from exc


def _refuse(path: Path, frame: Frame, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: byte {frame.offset}: {reason}\n"
        "  restore the file from a copy, or let `synthia-batch verify DIR --repair` drop the damaged frames",
        reason=reason,
        offset=frame.offset,
    )
