"""Files in S3 and Google Cloud Storage buckets, read in ranges of one version."""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from synthia_batch.core.errors import UsageError
from synthia_batch.core.store_endpoints import find_endpoint
from synthia_batch.inputs.remote.transport import Broken, RemoteFile

CHUNK_BYTES = 16 * 1024 * 1024
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_T = TypeVar("_T")


def open_bucket(scheme: str, bucket: str, url: str) -> "BucketStore":
    """Return the bucket of the address `url`, with the credentials of the environment or the machine.

    Raises:
        UsageError: An extra is not installed, or the environment's settings are invalid.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore, S3Store
    except ImportError as exc:
        raise UsageError(
            f"{url}: reading from object stores needs the extra {_EXTRAS[scheme]!r}: "
            f"pip install 'synthia-batch[{_EXTRAS[scheme]}]'"
        ) from exc
    endpoint = find_endpoint(scheme, os.environ)
    # Retries are left to inputs.remote.fetch.
    shared: dict[str, Any] = {
        "client_options": {
            "timeout": "120s",
            "connect_timeout": "10s",
            "allow_http": endpoint.startswith("http://"),
        },
        "retry_config": {"max_retries": 0},
    }
    try:
        client = GCSStore(bucket, **shared) if scheme == "gs" else S3Store(bucket, **shared)
    except (BaseError, ValueError) as exc:
        raise UsageError(f"{url}: {_shorten(exc)}") from exc
    return BucketStore(client, f"{scheme}://{bucket}")


class BucketStore:
    """The files of one bucket."""

    def __init__(self, client: Any, root: str) -> None:
        self._client = client
        self._root = root

    def look(self, key: str) -> RemoteFile | None:
        import obstore

        try:
            meta = self._ask(lambda: obstore.head(self._client, key)) if key else None
        except FileNotFoundError:
            return None
        if meta is None:
            return None
        version = meta["e_tag"] or meta["version"] or str(meta["last_modified"])
        return RemoteFile(url=f"{self._root}/{key}", key=key, size=meta["size"], version=version)

    def list_keys(self, prefix: str) -> list[str]:
        import obstore

        try:
            pages = self._ask(lambda: list(obstore.list(self._client, prefix or None)))
        except FileNotFoundError as exc:
            raise UsageError(f"{self._root}: there is no such bucket: {_shorten(exc)}") from exc
        return [found["path"] for page in pages for found in page]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the bytes of `file` from `start` on, in chunks of 16 MiB."""
        size = file.size or 0
        for begin in range(start, size, CHUNK_BYTES):
            yield self._read_range(file, begin, min(begin + CHUNK_BYTES, size))

    def _read_range(self, file: RemoteFile, begin: int, end: int) -> bytes:
        import obstore
        from obstore.exceptions import PreconditionError

        part = {} if (begin, end) == (0, file.size) else {"range": (begin, end)}
        options: Any = {**part, "if_match": file.version}
        try:
            found = self._ask(lambda: obstore.get(self._client, file.key, options=options))
            content = self._ask(lambda: bytes(found.bytes()))
        except (PreconditionError, FileNotFoundError) as exc:
            raise UsageError(f"{file.url}: changed during the download; run the same command again") from exc
        if len(content) != end - begin:
            raise Broken(f"expected {end - begin:,} bytes, got {len(content):,}")
        return content

    def _ask(self, call: Callable[[], _T]) -> _T:
        from obstore.exceptions import (
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        try:
            return call()
        except (FileNotFoundError, PreconditionError):
            raise
        except (PermissionDeniedError, UnauthenticatedError) as exc:
            raise UsageError(
                f"{self._root}: access denied: {_shorten(exc)}; check the credentials and "
                "permissions (read, list)"
            ) from exc
        # obstore has one error for timeouts, reset connections, 500, 503 and 429.
        except (BaseError, OSError) as exc:
            raise Broken(_shorten(exc)) from exc


def _shorten(error: Exception) -> str:
    # The other lines are debugging output of obstore.
    return str(error).partition("\n")[0].strip()
