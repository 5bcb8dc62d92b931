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
from urllib.parse import urlsplit

from synthia_batch.core.backoff import Backoff, BackoffPolicy
from synthia_batch.core.cache import measure
from synthia_batch.core.digest import digest_json
from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.masking import remember_address, strip_address
from synthia_batch.inputs.fetch.cache import find_copy, keep_copy, report_disk
from synthia_batch.inputs.fetch.file_types import LocatedFile, choose_row_files
from synthia_batch.inputs.fetch.normalize import VERSION
from synthia_batch.inputs.remote.transport import Broken, Changed, EndUnknown, RemoteFile, RemoteStore
from synthia_batch.job.fields import LONGEST_NAME

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


def fetch_remote(url: str, *, digest: str | None = None, makes: bool = True) -> list[LocatedFile]:
    """Return the files of rows at an address, downloaded unless they are in the cache.

    With `digest`, what the input must have, a file of unknown length is not downloaded a second time to see
    whether it came whole.

    Raises:
        UsageError: There are none, they cannot be downloaded, or an extra is not installed.
        StorageFailed: The copy cannot be written.
    """
    remember_address(url)
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise UsageError(
            f"{url}: expected an address with {', '.join(SCHEMES)} or hf; download it, and name the file"
        )
    if not makes:
        raise UsageError(f"{url}: not looked up again")
    store, path, shown = _open_store(scheme, rest, url)
    files = _find(store, path, shown)
    return [_fetch(store, file, digest) for file in files]


def _open_store(scheme: str, rest: str, url: str) -> tuple[RemoteStore, str, str]:
    """Return the store of an address, the key in it, and the address for messages."""
    if scheme in ("http", "https"):
        from synthia_batch.inputs.remote.http import WebStore

        try:
            urlsplit(url)
            return WebStore(), url, strip_address(url)
        except ValueError as exc:
            raise UsageError(f"{scheme}://...: not a valid address: {exc}; check its host") from exc
    from synthia_batch.inputs.remote.bucket import open_bucket

    bucket, _, path = rest.partition("/")
    return open_bucket(scheme, bucket, url), path, url


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


def _fetch(store: RemoteStore, file: RemoteFile, digest: str | None) -> LocatedFile:
    trusted = digest if file.size is None else None
    # A file without a version can change unnoticed, and one that nobody compared may have been cut off:
    # they are downloaded each time.
    version = file.version if file.version and trusted is None else f"fetched {time.time_ns()}"
    # `key` has the query, which `url` lacks.
    key = digest_json([VERSION, "remote", file.url, file.key, file.size, version])[:32]
    name = name_copy(file.url)
    directory = find_copy(key)
    if directory is None:
        directory = keep_copy(key, lambda target: _download(store, file, target / name, trusted))
        _log.info(f"{file.url}: downloaded, {(directory / name).stat().st_size:,} bytes, to {directory}")
    return LocatedFile(path=directory / name, shown=file.url)


def name_copy(url: str) -> str:
    """Return a file name for the copy of `url`: the end of its path, if that is a file's name."""
    name = url.rpartition("/")[2]
    if name in ("", ".", ".."):
        return "rows"
    return name.encode(errors="replace")[-LONGEST_NAME:].decode(errors="ignore")


def _download(store: RemoteStore, file: RemoteFile, path: Path, digest: str | None) -> None:
    """Write `file` to `path` in a new directory; without `digest`, compare it if it may have been cut off.

    Raises:
        UsageError: It cannot be downloaded whole.
    """
    path.parent.mkdir()
    if _receive(store, file, path) or digest is not None:
        return
    second = path.with_name(f".{path.name}.second")
    _receive(store, file, second)
    sizes = path.stat().st_size, second.stat().st_size
    if measure(path) != measure(second):
        raise UsageError(
            f"{file.url}: the server does not say how long the file is, and two downloads differ "
            f"({sizes[0]:,} and {sizes[1]:,} bytes), so neither is known to be whole; download it and name "
            "the file, or set --input-digest"
        )
    second.unlink()
    _log.info(f"{file.url}: the server does not say how long it is; two downloads are equal")


def _receive(store: RemoteStore, file: RemoteFile, path: Path) -> bool:
    """Write `file` to `path`, resuming where a request breaks; return whether it is known to be whole."""
    done, backoff, is_whole = 0, Backoff(BACKOFF), True
    with path.open("wb") as copy:
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
            except EndUnknown:
                is_whole = done == file.size
                if is_whole or file.size is None:
                    break
                _wait(Broken(f"expected {file.size:,} bytes, got {done:,}"), backoff, file.url)
            except Changed as exc:
                done = 0
                copy.seek(0)
                copy.truncate()
                _wait(Broken(str(exc)), backoff, file.url)
            except Broken as exc:
                _wait(exc, backoff, file.url)
    if not done:
        raise InputRefused([f"{file.url}: the file is empty"])
    return is_whole


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
