"""Files in buckets of S3 and Google Cloud Storage, read in ranges of one version."""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from synthia_batch.errors import UsageError
from synthia_batch.inputs.remote.transport import Broken, RemoteFile

CHUNK_BYTES = 16 * 1024 * 1024
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL")
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_T = TypeVar("_T")


def open_bucket(scheme: str, bucket: str, said: str) -> "BucketStore":
    """Return the bucket. Credentials, region and endpoint are those of the environment, or the machine's.

    Raises:
        UsageError: What reads it is not installed, or the environment says what cannot be used.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore, S3Store
    except ImportError as exc:
        raise UsageError(
            f"{said}: reading from object stores needs the extra {_EXTRAS[scheme]!r}: "
            f"pip install 'synthia-batch[{_EXTRAS[scheme]}]'"
        ) from exc
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    # Its own retries are off: `remote` counts them.
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
        raise UsageError(f"{said}: {_shorten(exc)}") from exc
    return BucketStore(client, f"{scheme}://{bucket}")


class BucketStore:
    """The files of one bucket."""

    def __init__(self, client: Any, root: str) -> None:
        self._client = client
        self._root = root

    def look(self, key: str) -> RemoteFile | None:
        """Return the file of that key, None where there is none."""
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
        """Return the keys of all files below `prefix`."""
        import obstore

        try:
            return self._ask(
                lambda: [
                    found["path"] for page in obstore.list(self._client, prefix or None) for found in page
                ]
            )
        except FileNotFoundError as exc:
            raise UsageError(f"{self._root}: there is no such bucket: {_shorten(exc)}") from exc

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the bytes of `file` from `start` on, in pieces of 16 MB."""
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
            raise UsageError(f"{file.url}: changed while it was fetched; run the same command again") from exc
        if len(content) != end - begin:
            raise Broken(f"{len(content):,} of {end - begin:,} bytes came")
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
                f"{self._root}: it is not allowed: {_shorten(exc)}; see to the credentials and "
                "rights (read, list)"
            ) from exc
        # A timeout, a reset connection, 500, 503, 429: the library has one error for them all.
        except (BaseError, OSError) as exc:
            raise Broken(_shorten(exc)) from exc


def _shorten(error: Exception) -> str:
    # The rest is the library's debugging, of a dozen lines.
    return str(error).partition("\n")[0].strip()
