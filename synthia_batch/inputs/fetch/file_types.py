"""The formats and compressions of input files: the one table of each.

A new format is an entry of KINDS and a module with its reader (a `FileSource`), or with a normalizer that
writes its rows as JSONL or Parquet. Both are named here and imported when a file needs them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from synthia_batch.core.formatting import join_first

_INPUTS = "synthia_batch.inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputKind:
    """A format of rows. `name` is part of cache keys and identities; `label` is for messages.

    `reader`, as module:class, reads the files directly. A format without one has a `normalizer`, as
    module:function, which writes a copy named `rows_name`, of a format that has a reader.
    `magic` are the first bytes of every file of this format; `first_character` is that of a text, for a
    stream without a name. `search_rank` is its place in the search of a directory, see `choose_row_files`.
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    magic: bytes | None = None
    first_character: bytes | None = None
    reader: str | None = None
    normalizer: str | None = None
    rows_name: str = "rows.jsonl"
    search_rank: int = 1

    def load_reader(self) -> Any:
        """Return the class that reads the format; ValueError where files are normalized first."""
        return _load(self.reader, self.name)

    def load_normalizer(self) -> Any:
        """Return the function that rewrites the format; ValueError where files are read directly."""
        return _load(self.normalizer, self.name)


KINDS = (
    InputKind(
        name="jsonl",
        label="JSONL",
        suffixes=(".jsonl", ".ndjson"),
        first_character=b"{",
        reader="readers.jsonl:JsonlSource",
    ),
    InputKind(
        name="parquet",
        label="Parquet",
        suffixes=(".parquet",),
        magic=b"PAR1",
        reader="readers.parquet:ParquetSource",
        rows_name="rows.parquet",
    ),
    InputKind(name="csv", label="CSV", suffixes=(".csv",), normalizer="fetch.csv_lines:write_csv_lines"),
    InputKind(name="tsv", label="TSV", suffixes=(".tsv",), normalizer="fetch.csv_lines:write_tsv_lines"),
    InputKind(
        name="json",
        label="JSON",
        suffixes=(".json",),
        first_character=b"[",
        normalizer="fetch.json_list:write_json_lines",
        search_rank=2,  # Beside files of rows, most .json files are not rows.
    ),
    InputKind(
        name="xlsx",
        label="Excel",
        suffixes=(".xlsx", ".xlsm"),
        normalizer="fetch.xlsx:write_sheet_lines",
        search_rank=3,  # Beside CSV, it is most often the same table.
    ),
    # Only whole folders: a single text can be one prompt or a prompt a line. See fetch.text_folder.
    InputKind(
        name="txt", label="folders of .txt", suffixes=(), reader="readers.text_folder:TextFolderSource"
    ),
    InputKind(
        name="run",
        label="directories of complete runs",
        suffixes=(),
        reader="readers.run_samples:RunSource",
        rows_name="rows.parquet",
    ),
)
METADATA_NAMES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files of the datasets library that hold no rows."""
UNMARKED_TEXT = "csv"
"""The kind of a stream without a name whose first bytes indicate no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """A compression of whole files. The first suffix is the usual one."""

    name: str
    suffixes: tuple[str, ...]
    magic: bytes


COMPRESSIONS = (
    Compression(name="gzip", suffixes=(".gz", ".gzip"), magic=b"\x1f\x8b"),
    Compression(name="zstd", suffixes=(".zst", ".zstd"), magic=b"\x28\xb5\x2f\xfd"),
)
MAX_NAMES_SHOWN = 5
MAGIC_BYTES = max(len(entry.magic) for entry in (*KINDS, *COMPRESSIONS) if entry.magic)
FORMATS = (
    "supported formats: "
    + ", ".join(
        f"{kind.label} ({', '.join(kind.suffixes)})" if kind.suffixes else kind.label for kind in KINDS
    )
    + f"; compressed: {', '.join(compression.suffixes[0] for compression in COMPRESSIONS)}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedFile:
    """A file of rows on this machine, or a directory of a saved dataset. `shown` is its name in messages.

    `texts` are the files of a folder of texts, by their paths in it.
    """

    path: Path
    shown: Path | str
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NameParts:
    """The stem of a file's name, and the kind and compression that its suffixes name."""

    stem: str
    kind: InputKind | None
    compression: Compression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFiles:
    """The files of a directory that are read, and those that are not."""

    rows: tuple[str, ...]
    ignored: tuple[str, ...]

    def describe_ignored(self) -> str:
        """Return a sentence about the files that are not read, empty if there are none."""
        return f"not read: {join_first(self.ignored, MAX_NAMES_SHOWN)}" if self.ignored else ""


def get_kind(name: str) -> InputKind:
    return next(kind for kind in KINDS if kind.name == name)


def split_name(name: str) -> NameParts:
    """Return the parts of `name`, the last part of a path."""
    path = Path(name)
    compression = next((each for each in COMPRESSIONS if path.suffix.lower() in each.suffixes), None)
    if compression is not None:
        path = Path(path.stem)
    kind = next((each for each in KINDS if path.suffix.lower() in each.suffixes), None)
    return NameParts(stem=path.stem if kind else path.name, kind=kind, compression=compression)


def choose_row_files(names: Iterable[str], holds_rows: Callable[[str], bool] = lambda name: True) -> RowFiles:
    """Return which files below a directory are read, of their paths in it, sorted.

    Only the kinds of the lowest rank that is there are read; hidden files never are. `holds_rows` can
    exclude a file whose name fits.
    """
    visible = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    ranks: dict[int, list[str]] = {}
    for name in visible:
        last = name.rpartition("/")[2]
        kind = split_name(last).kind
        if kind is not None and last not in METADATA_NAMES and holds_rows(name):
            ranks.setdefault(kind.search_rank, []).append(name)
    rows = ranks[min(ranks)] if ranks else []
    taken = set(rows)
    return RowFiles(rows=tuple(rows), ignored=tuple(name for name in visible if name not in taken))


def list_row_endings() -> list[str]:
    """Return every ending of the names that `choose_row_files` can choose."""
    packings = ("", *(suffix for compression in COMPRESSIONS for suffix in compression.suffixes))
    return [suffix + packing for kind in KINDS for suffix in kind.suffixes for packing in packings]


def find_magic_kind(start: bytes) -> InputKind | None:
    """Return the kind whose magic bytes `start` has."""
    return next((kind for kind in KINDS if kind.magic and start.startswith(kind.magic)), None)


def guess_text_kind(start: bytes) -> InputKind:
    """Return the likely kind of a text that begins with `start`."""
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    found = next((kind for kind in KINDS if first and kind.first_character == first), None)
    return found or get_kind(UNMARKED_TEXT)


def _load(place: str | None, kind: str) -> Any:
    if place is None:
        raise ValueError(f"the format {kind} has no such module")
    return resolve_name(f"{_INPUTS}.{place}")
