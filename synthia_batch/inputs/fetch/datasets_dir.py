"""Directories that datasets' save_to_disk has written."""

import json
import logging
from pathlib import Path

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.errors import UsageError
from synthia_batch.inputs.fetch.cache import FACTS_NAME, find_copy, keep_copy
from synthia_batch.inputs.fetch.file_types import LocatedFile
from synthia_batch.inputs.fetch.normalize import VERSION, NormalizedFile, spell_size, write_facts

_log = logging.getLogger(__name__)

SPLITS_NAME = "dataset_dict.json"


def refuse_splits(directory: Path) -> None:
    """Refuse a directory of several splits: which of them is meant, it does not say. Raises UsageError."""
    splits = directory / SPLITS_NAME
    if not splits.is_file():
        return
    names = sorted(path.name for path in directory.iterdir() if (path / "state.json").is_file())
    raise UsageError(
        f"{directory}: holds the splits {', '.join(names) or 'that are missing'}; name one of them, such as "
        f"{directory / (names[0] if names else 'train')}"
    )


def normalize_dataset(found: LocatedFile, cache: DigestCache, *, makes: bool = True) -> NormalizedFile:
    """Return a Parquet file of the dataset's rows, made where there is none yet.

    Raises:
        UsageError: It cannot be read, or there is no copy and none is to be made.
        InputRefused: It is damaged, or has no rows.
        StorageFailed: The copy cannot be written.
    """
    from synthia_batch.inputs.fetch.arrow import list_dataset_files, write_dataset

    files = list_dataset_files(found.path)
    # Not the copy's digest: another pyarrow may write other bytes of the same rows.
    digest = digest_json(["arrow", *(digest_file(file, cache) for file in files)])
    key = digest_json([VERSION, digest])[:32]
    directory = find_copy(key)
    if directory is None:
        if not makes:
            raise UsageError(f"{found.shown}: there is no plain copy of it; run the job once")

        def build(target: Path) -> None:
            target.mkdir()
            write_dataset(files, target / "rows.parquet", found.shown)
            write_facts(target, "rows.parquet", digest)

        directory = keep_copy(key, build)
        _log.info(f"{found.shown}: read from a Parquet copy, {spell_size(directory)} in {directory}")
    facts = json.loads((directory / FACTS_NAME).read_text(encoding="utf-8"))
    return NormalizedFile(path=directory / facts["file"], digest=facts["digest"])
