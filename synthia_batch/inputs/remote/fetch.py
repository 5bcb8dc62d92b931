"""Downloads remote inputs into the user's cache, by address and version.

A download that breaks is resumed where it broke, up to five times in a row; an incomplete one is never used.
"""

import glob
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from synthia_batch.core.backoff import Backoff, BackoffPolicy
from synthia_batch.core.digest import digest_json
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.fetch.cache import find_copy, keep_copy, report_disk
from synthia_batch.inputs.fetch.file_types import LocatedFile, choose_row_files
from synthia_batch.inputs.fetch.normalize import VERSION
from synthia_batch.inputs.remote.transport import Broken, Changed, RemoteFile, RemoteStore

_log = logging.getLogger(__name__)

BACKOFF = BackoffPolicy(first_seconds=0.5, longest_seconds=60.0, longest_asked_seconds=60.0, max_retries=5)
"""About 15 s in all."""
_T = TypeVar("_T")
SCHEMES = ("s3", "gs", "https", "http")


def match_names(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that match, sorted; none if `pattern` has no wildcard.

    `*` and `?` match within a part of a path, `**` across parts, `[...]` one character.
    """
    if not glob.has_magic(pattern):
        return []
    from fsspec.utils import glob_translate

    expression = re.compile(glob_translate(pattern))
    return sorted(name for name in names if expression.match(name))


def fetch_remote(url: str, *, makes: bool = True) -> list[LocatedFile]:
    """Return the files of rows at an address, downloaded unless they are in the cache.

    Raises:
        UsageError: There are none, they cannot be downloaded, or an extra is not installed.
        StorageFailed: The copy cannot be written.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise UsageError(
            f"{url}: expected an address with {', '.join(SCHEMES)} or hf; download it, and name the file"
        )
    if not makes:
        raise UsageError(f"{url}: not looked up again")
    store, path = _open_store(scheme, rest, url)
    files = _find(store, path, url)
    return [_fetch(store, file) for file in files]


def _open_store(scheme: str, rest: str, url: str) -> tuple[RemoteStore, str]:
    if scheme in ("http", "https"):
        from synthia_batch.inputs.remote.http import WebStore

        return WebStore(), url
    from synthia_batch.inputs.remote.bucket import open_bucket

    bucket, _, path = rest.partition("/")
    return open_bucket(scheme, bucket, url), path


def _find(store: RemoteStore, path: str, url: str) -> list[RemoteFile]:
    found = _try(lambda: store.look(path), url) if not path.endswith("/") else None
    if found is not None:
        return [found]
    magic = re.search(r"[*?[]", path)
    folder = path[: magic.start()].rpartition("/")[0] if magic else path.rstrip("/")
    keys = _try(lambda: store.list_keys(folder), url)
    wanted = match_names(keys, path)
    if not wanted:
        paths = {key.removeprefix(folder).lstrip("/"): key for key in keys}
        chosen = choose_row_files(paths)
        wanted = [paths[name] for name in chosen.rows]
        if wanted and chosen.ignored:
            _log.info(f"{url}: {chosen.describe_ignored()}")
    if not wanted:
        raise UsageError(f"{url}: no such file, and no files of rows below it; check the address")
    files = [_try(lambda key=key: store.look(key), url) for key in wanted]  # type: ignore[misc]
    return [file for file in files if file is not None]


def _fetch(store: RemoteStore, file: RemoteFile) -> LocatedFile:
    # A file without a version can change unnoticed: it is downloaded each time.
    version = file.version or f"fetched {time.time_ns()}"
    key = digest_json([VERSION, "remote", file.url, file.size, version])[:32]
    name = file.url.rpartition("/")[2] or "rows"
    directory = find_copy(key)
    if directory is None:
        directory = keep_copy(key, lambda target: _download(store, file, target, name))
        _log.info(f"{file.url}: downloaded, {(directory / name).stat().st_size:,} bytes, to {directory}")
    return LocatedFile(path=directory / name, shown=file.url)


def _download(store: RemoteStore, file: RemoteFile, target: Path, name: str) -> None:
    """Write `file` to `target`, a new directory, resuming where a request breaks."""
    target.mkdir()
    done, backoff = 0, Backoff(BACKOFF)
    with (target / name).open("wb") as copy:
        while True:
            try:
                for content in store.read(file, done):
                    with report_disk():
                        copy.write(content)
                    done += len(content)
                    backoff.reset()
                if file.size is None or done == file.size:
                    break
                raise Broken(f"expected {file.size:,} bytes, got {done:,}")
            except Changed as exc:
                done = 0
                copy.seek(0)
                copy.truncate()
                _wait(Broken(str(exc)), backoff, file.url)
            except Broken as exc:
                _wait(exc, backoff, file.url)
    if not done:
        raise InputRefused([f"{file.url}: the file is empty"])


def _try(ask: Callable[[], _T], url: str) -> _T:
    backoff = Backoff(BACKOFF)
    while True:
        try:
            return ask()
        except Broken as exc:
            _wait(exc, backoff, url)


def _wait(exc: Broken, backoff: Backoff, shown: str) -> None:
    if not backoff.wait(exc.pause_seconds):
        raise UsageError(
            f"{shown}: download failed {backoff.failures} times: {exc}; run the same command again later"
        ) from exc
