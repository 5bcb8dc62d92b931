"""Resolves what a job names as its input to normalized files on this machine."""

import glob
import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from synthia_batch.core.digest import DigestCache, open_digest_cache
from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.formatting import join_first
from synthia_batch.core.types import ANY_ROW_BYTES, MAX_ROW_BYTES, InputFile
from synthia_batch.inputs.fetch.cache import find_copy, is_copy
from synthia_batch.inputs.fetch.datasets_dir import is_dataset, normalize_dataset, refuse_splits
from synthia_batch.inputs.fetch.file_types import FORMATS, LocatedFile, RowFiles, choose_row_files, split_name
from synthia_batch.inputs.fetch.normalize import NormalizedFile, normalize_file
from synthia_batch.inputs.fetch.numbered_rows import (
    NO_COLUMNS,
    DrawnColumns,
    count_numbered,
    normalize_numbered,
)
from synthia_batch.inputs.fetch.run_directory import is_run, normalize_run
from synthia_batch.inputs.fetch.sniff import find_json_kind, read_start
from synthia_batch.inputs.fetch.stamps import read_stamps
from synthia_batch.inputs.fetch.stdin import STDIN, STDIN_NAME, keep_stdin, refuse_lost
from synthia_batch.inputs.fetch.text_folder import list_texts, normalize_texts

_log = logging.getLogger(__name__)

MOST_NAMED = 5
"""Runs that a message names."""

HUB_PREFIX = "hf://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

InputFiles = tuple[InputFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedInput:
    """A job's input on this machine. `name` is the default name of the job.

    `paths` are the paths of the job, with stdin replaced by the copy that was kept of it.
    """

    files: InputFiles
    name: str
    paths: tuple[str, ...]


def resolve_inputs(
    paths: Sequence[str],
    cache: DigestCache | None = None,
    *,
    digest: str | None = None,
    makes: bool = True,
    max_row_bytes: int = MAX_ROW_BYTES,
    fails_long_rows: bool = False,
    drawn: DrawnColumns = NO_COLUMNS,
) -> ResolvedInput:
    """Return the files that `paths` name, in their order; those of a pattern or directory sorted by name.

    `digest` is what the input must have, if the job says so; it is compared elsewhere. Without `makes`,
    nothing is fetched or copied: an input that is not in the cache is refused. A row of over
    `max_row_bytes` is refused; with `fails_long_rows`, not before its line is read. `drawn` are columns of
    numbered rows.

    Raises:
        UsageError: An input is missing, named twice, or of an unknown format.
        InputRefused: One is empty or damaged.
        StorageFailed: A copy cannot be written.
    """
    cache = cache or open_digest_cache()
    numbered = next((path for path in paths if count_numbered(path) is not None), None)
    if numbered is not None and len(paths) > 1:
        raise UsageError(f"{numbered}: numbered rows are an input of their own; name no other beside them")
    if paths.count(STDIN) > 1:
        raise UsageError("-: stdin is named twice; it can be read once")
    paths = [str(keep_stdin()) if path == STDIN else path for path in paths]
    located = [file for path in paths for file in find_files(path, digest=digest, makes=makes)]
    _refuse_twice(located)
    located = _tell_apart(located)
    names = name_files([str(file.shown) for file in located])
    files = []
    for file, name in zip(located, names, strict=True):
        count = count_numbered(str(file.shown))
        if count is None:
            rows = _normalize(file, cache, makes=makes, limit=max_row_bytes, fails_long_rows=fails_long_rows)
        else:
            pools = _find_pools(drawn, cache, makes=makes)
            rows = normalize_numbered(file, count, drawn, pools, cache, makes=makes)
        # A rewritten row was checked as it was, and may be longer as JSON.
        is_checked = rows.digest is not None and rows.kind.name != "parquet"
        files.append(
            InputFile(
                path=rows.path,
                kind=rows.kind.name,
                shown=file.shown,
                name=name,
                digest=rows.digest,
                stamp=read_stamps([rows.path], file.shown)[rows.path],
                max_row_bytes=ANY_ROW_BYTES if is_checked else max_row_bytes,
                is_new_copy=rows.is_new,
            )
        )
    return ResolvedInput(files=tuple(files), name=_name_input(paths, files), paths=tuple(paths))


def find_files(named: str, *, digest: str | None = None, makes: bool = True) -> list[LocatedFile]:
    """Return the files of rows of one path of a job: a file, a directory, a pattern or an address."""
    if count_numbered(named) is not None:
        return [LocatedFile(path=Path(named), shown=named)]
    if named.startswith(HUB_PREFIX):
        from synthia_batch.inputs.remote.hub import fetch_dataset

        return fetch_dataset(named, makes=makes)
    if is_url(named):
        from synthia_batch.inputs.remote.fetch import fetch_remote

        return fetch_remote(named, digest=digest, makes=makes)
    path = Path(named)
    if is_copy(path):
        if not path.exists() or find_copy(path.parent.name) is None:
            raise refuse_lost(path)
        return [LocatedFile(path=path, shown=STDIN_NAME)]
    try:
        if path.is_dir():
            return _find_in_directory(path, reports=makes)
        if not path.exists() and glob.has_magic(named):
            return _find_by_pattern(named)
    except ValueError as exc:
        raise UsageError(f"{named!r}: is not a path: {exc}") from exc
    return [LocatedFile(path=path, shown=path)]


def is_url(path: str) -> bool:
    """Return whether the path of a job is an address of another machine."""
    return _URL.match(path) is not None


def name_files(shown: Sequence[str]) -> list[str]:
    """Return the names of the files in the output.

    One file has the last part of its path, several have all below their common directory.
    """
    if len(shown) == 1 and count_numbered(shown[0]) is not None:
        return list(shown)
    if len(shown) == 1 or any(is_url(name) for name in shown) != all(is_url(name) for name in shown):
        names = [_encode_name(name.rstrip("/").rpartition("/")[2]) for name in shown]
        return names if len(set(names)) == len(names) else [_encode_name(name) for name in shown]
    paths = list(shown) if is_url(shown[0]) else [os.path.abspath(name) for name in shown]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [_encode_name(path[len(common) :].lstrip("/")) for path in paths]


def _find_in_directory(directory: Path, *, reports: bool) -> list[LocatedFile]:
    if is_dataset(directory) or is_run(directory):
        return [LocatedFile(path=directory, shown=directory)]
    refuse_splits(directory)
    _refuse_several_runs(directory)
    found = choose_row_files(_list_files(directory), lambda name: _may_hold_rows(directory / name))
    texts = list_texts(found.ignored)
    if not found.rows and texts:
        found = RowFiles(rows=(), ignored=tuple(name for name in found.ignored if name not in set(texts)))
    elif not found.rows:
        ignored = f" ({found.describe_ignored()})" if found.ignored else ""
        raise UsageError(f"{directory}: the directory holds no files of rows{ignored}; {FORMATS}")
    if found.ignored and reports:
        _log.info(f"{directory}: {found.describe_ignored()}")
    if texts and not found.rows:
        return [LocatedFile(path=directory, shown=directory, texts=tuple(texts))]
    paths = sorted((directory / name for name in found.rows), key=str)
    return [LocatedFile(path=path, shown=path) for path in paths]


def _refuse_several_runs(directory: Path) -> None:
    """Refuse a pipeline's directory, or one of outputs: rows of several runs would be mixed."""
    runs = sorted(Path(folder) for folder, _, _ in os.walk(directory) if is_run(Path(folder)))
    if runs:
        names = join_first([*map(str, runs)], MOST_NAMED)
        raise UsageError(f"{directory}: holds runs, each an input of its own; name one: {names}")


def _list_files(directory: Path) -> Iterator[str]:
    """Yield the paths of the files below `directory`, relative to it; hidden folders are skipped."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(folder) / name).relative_to(directory).as_posix() for name in names)


def _may_hold_rows(path: Path) -> bool:
    """Return False for a .json file whose content shows that it holds no rows."""
    name = split_name(path.name)
    if name.kind is None or name.kind.name != "json":
        return True
    try:
        start = read_start(path, name.compression, path)
    except (InputRefused, OSError):
        return True  # Refused with its reason when it is opened.
    return find_json_kind(start, name.kind) is not None


def _find_by_pattern(pattern: str) -> list[LocatedFile]:
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not paths:
        raise UsageError(f"{pattern}: no file matches; check the path and the pattern")
    return [LocatedFile(path=Path(path), shown=Path(path)) for path in paths]


def _normalize(
    file: LocatedFile, cache: DigestCache, *, makes: bool, limit: int, fails_long_rows: bool
) -> NormalizedFile:
    if file.texts:
        return normalize_texts(file, cache, makes=makes, max_row_bytes=limit)
    if is_run(file.path):
        return normalize_run(file, makes=makes)
    if is_dataset(file.path):
        return normalize_dataset(file, cache, makes=makes, max_row_bytes=limit)
    return normalize_file(file, cache, makes=makes, max_row_bytes=limit, copies_long_lines=fails_long_rows)


def _find_pools(drawn: DrawnColumns, cache: DigestCache, *, makes: bool) -> dict[str, InputFiles]:
    """Return the files that columns are drawn from."""
    return {
        name: resolve_inputs([str(sampler.file)], cache, makes=makes).files
        for name, sampler in drawn.samplers.items()
        if sampler.file is not None
    }


def _refuse_twice(located: Sequence[LocatedFile]) -> None:
    seen: set[str] = set()
    for file in located:
        real = os.path.realpath(file.path)
        if real in seen:
            raise UsageError(f"{file.shown}: is named twice; name each file once")
        seen.add(real)


def _tell_apart(located: Sequence[LocatedFile]) -> list[LocatedFile]:
    """Return the files with a number after names that are shown alike: of addresses, the query is hidden."""
    shown = Counter(str(file.shown) for file in located)
    seen: Counter[str] = Counter()
    told = []
    for file in located:
        name = str(file.shown)
        seen[name] += 1
        told.append(file if shown[name] == 1 else replace(file, shown=f"{name}#{seen[name]}"))
    return told


def _name_input(paths: Sequence[str], files: Sequence[InputFile]) -> str:
    """Return the name of the directory if the job names just one, else of the first file."""
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return Path(os.path.abspath(paths[0])).name
    if count_numbered(files[0].name) is not None:
        return "rows"
    path = Path(files[0].name.rpartition("/")[2])
    return STDIN_NAME if is_copy(Path(paths[0])) else split_name(path.name).stem


def _encode_name(name: str) -> str:
    """Return `name` as UTF-8; bytes that are not become \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")
