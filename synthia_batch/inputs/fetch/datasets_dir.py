"""Directories written by save_to_disk of the datasets library."""

from pathlib import Path

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import MAX_ROW_BYTES
from synthia_batch.inputs.fetch.file_types import LocatedFile
from synthia_batch.inputs.fetch.normalize import VERSION, NormalizedFile, get_normalized_copy, write_facts
from synthia_batch.inputs.fetch.stamps import check_unchanged, read_stamps

SPLITS_NAME = "dataset_dict.json"
ROWS_NAME = "rows.parquet"


def is_dataset(path: Path) -> bool:
    """Return whether `path` is a directory written by save_to_disk."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def refuse_splits(directory: Path) -> None:
    """Raise UsageError if the directory holds several splits: one of them must be named."""
    splits = directory / SPLITS_NAME
    if not splits.is_file():
        return
    names = sorted(path.name for path in directory.iterdir() if (path / "state.json").is_file())
    raise UsageError(
        f"{directory}: expected one dataset, got the splits {', '.join(names) or '(none of them is there)'}; "
        f"name one of them, such as {directory / (names[0] if names else 'train')}"
    )


def normalize_dataset(
    found: LocatedFile, cache: DigestCache, *, makes: bool = True, max_row_bytes: int = MAX_ROW_BYTES
) -> NormalizedFile:
    """Return a Parquet file of the dataset's rows, created if missing. Its reader checks `max_row_bytes`."""
    from synthia_batch.inputs.fetch.arrow import list_dataset_files, write_dataset

    files = list_dataset_files(found.path)
    stamps = read_stamps(files, found.shown)
    # Not the copy's digest: another version of pyarrow may write the same rows as different bytes.
    digest = digest_json(["arrow", *(digest_file(file, cache) for file in files)])

    def build(target: Path) -> None:
        target.mkdir()
        write_dataset(files, target / ROWS_NAME, found.shown)
        check_unchanged(stamps, found.shown)
        write_facts(target, ROWS_NAME, digest)

    return get_normalized_copy(digest_json([VERSION, digest])[:32], build, found, makes=makes)
