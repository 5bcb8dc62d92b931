"""The requests that a run sends to an object store, each retried until it is answered.

It uses obstore because each write must state what it expects to find: pyarrow.fs and fsspec have no
conditional writes, and without them two writers, or one late request, overwrite each other silently. The
client's own retries are off: this module and the lease decide whether a request may be sent again.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from synthia_batch.core.backoff import Backoff, BackoffPolicy
from synthia_batch.core.errors import StorageFailed, StoreUnreachable, UsageError
from synthia_batch.core.store_endpoints import find_endpoint
from synthia_batch.storage.remote.object_metadata import StoredObject, Version

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

CONNECT_SECONDS = 10
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
TOLD_AT_PAUSE_SECONDS = 1.0
SIGNALLED_SECONDS = 5.0
"""A store that answers nothing for this long after a signal asked the run to stop is not waited for."""
_LOOK_SECONDS = 0.2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a request that is not answered is tried: `request_seconds` each, `seconds` in all."""

    request_seconds: float
    seconds: float


class ObjectStore:
    """The objects below one prefix. `url` is as the user wrote it. Thread-safe.

    A request that fails because of the connection or the server is retried with growing pauses; one that
    is denied is not.

    Raises:
        StoreUnreachable: From any request: the store did not answer in time.
        StorageFailed: From any request: it denies access.
        UsageError: From any write or listing: the bucket does not exist.
    """

    def __init__(self, url: str, client: "Client", patience: Patience) -> None:
        self.url = url
        self._client = client
        self._patience = patience
        self._closing = threading.Event()
        self._is_told = False
        self._silent_since: float | None = None
        self.signalled_seconds: Callable[[], float] = lambda: 0.0

    @property
    def is_given_up(self) -> bool:
        """Whether a signal asked to stop, as `signalled_seconds` tells, and a request has no answer since."""
        if self._silent_since is None:
            return False
        return min(self.signalled_seconds(), time.monotonic() - self._silent_since) > SIGNALLED_SECONDS

    def read(self, key: str) -> StoredObject | None:
        """Return the object with its content, or None if there is none."""
        return self._get(key, with_content=True)

    def head(self, key: str) -> StoredObject | None:
        """Return the object without its content, or None if there is none."""
        return self._get(key, with_content=False)

    def create(self, key: str, content: bytes, metadata: Mapping[str, str]) -> Version | None:
        """Put an object if there is none, and return its version; None if there is one.

        That one may be this very object, put by an earlier request whose answer was lost.
        """
        return self._put(key, content, metadata, "create")

    def replace(self, key: str, content: bytes, metadata: Mapping[str, str], seen: Version) -> Version | None:
        """Replace the version `seen`, and return the new one; None if that version is no longer there."""
        return self._put(key, content, metadata, seen.condition)

    def overwrite(self, key: str, content: bytes) -> None:
        """Put an object unconditionally. Only for objects that no run relies on."""
        self._put(key, content, {}, "overwrite")

    def remove(self, key: str) -> None:
        """Remove an object if it exists."""
        import obstore

        def delete() -> None:
            try:
                obstore.delete(self._client, key)
            except FileNotFoundError:
                return

        self._try("remove", key, delete)

    def list_keys(self) -> dict[str, int]:
        """Return the size in bytes of every object below the prefix, by its key."""
        import obstore

        def collect() -> dict[str, int]:
            return {found["path"]: found["size"] for page in obstore.list(self._client) for found in page}

        return self._try("list", "", collect)

    def stop_waiting(self) -> None:
        """Limit every current and later request to at most one more try."""
        self._closing.set()

    def _get(self, key: str, *, with_content: bool) -> StoredObject | None:
        import obstore

        def get() -> StoredObject | None:
            try:
                found = obstore.get(self._client, key, options={"head": not with_content})
                content = bytes(found.bytes()) if with_content else b""
            except FileNotFoundError:
                return None
            meta = found.meta
            return StoredObject(
                key=key,
                size_bytes=meta["size"],
                version=Version(e_tag=meta["e_tag"], number=meta["version"]),
                metadata={str(name): str(value) for name, value in found.attributes.items()},
                content=content,
            )

        return self._try("read", key, get)

    def _put(self, key: str, content: bytes, metadata: Mapping[str, str], mode: Any) -> Version | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> Version | None:
            try:
                # In one request, up to 5 GB: a part has at most 4,000 samples by default, and not every store
                # supports conditions on multipart uploads.
                done = obstore.put(
                    self._client,
                    key,
                    content,
                    mode=mode,
                    use_multipart=False,
                    attributes={"Content-Type": _name_type(key), **metadata},
                )
            # 412, or 409 if two conditional requests collided: the caller reads the object and decides.
            except (AlreadyExistsError, PreconditionError):
                return None
            return Version(e_tag=done["e_tag"], number=done["version"])

        return self._try("write", key, put)

    def _try(self, doing: str, key: str, call: Callable[[], _T]) -> _T:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        backoff = Backoff(
            BackoffPolicy(
                first_seconds=FIRST_PAUSE_SECONDS,
                longest_seconds=LONGEST_PAUSE_SECONDS,
                max_seconds=self._patience.seconds,
            )
        )
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        while True:
            try:
                answer = self._call(call)
                self._is_told, self._silent_since = False, None
                return answer
            except (PermissionDeniedError, UnauthenticatedError) as exc:
                raise StorageFailed(
                    f"could not {doing} {self._name(key)}: it is not allowed: {_shorten(exc)}\n"
                    "  see to the credentials and rights (read, write, delete, list); nothing finished is "
                    "lost: run the same command again to go on"
                ) from exc
            except FileNotFoundError as exc:
                raise UsageError(f"{self.url}: there is no such bucket: {_shorten(exc)}") from exc
            # A timeout, a reset connection, 500, 503, 429: the library has one error for them all, and
            # for what will never work, such as a name that is no bucket's, too.
            except (BaseError, OSError) as exc:
                pause = None if self._closing.is_set() or self.is_given_up else backoff.next_pause()
                if pause is None:
                    raise StoreUnreachable(
                        f"could not {doing} {self._name(key)}, {self._describe_limit()}: {_shorten(exc)}\n"
                        "  nothing finished is lost: see to the network, the endpoint and the credentials, "
                        "and run the same command again"
                    ) from exc
                self._tell_of_waiting(exc, pause)
            left = pause
            while left > 0 and not self.is_given_up and not self._closing.wait(min(left, _LOOK_SECONDS)):
                left -= _LOOK_SECONDS

    def _call(self, call: Callable[[], _T]) -> _T:
        """Return the answer of one request, or raise TimeoutError if the store is given up meanwhile.

        A request blocks in native code, where the main thread would notice no signal until its end.
        """
        if threading.current_thread() is not threading.main_thread():
            return call()
        answer: Future[_T] = Future()

        def ask() -> None:
            try:
                answer.set_result(call())
            except BaseException as exc:  # Whatever it is, the waiting thread gets it.
                answer.set_exception(exc)

        threading.Thread(target=ask, name="store-request", daemon=True).start()
        while not wait([answer], _LOOK_SECONDS).done:
            if self.is_given_up:
                raise TimeoutError("the run was asked to stop, and the store has not answered since")
        return answer.result()

    def _tell_of_waiting(self, error: Exception, pause: float) -> None:
        # Once, until it answers again; a hiccup is not worth a line.
        if not self._is_told and pause >= TOLD_AT_PAUSE_SECONDS:
            self._is_told = True
            _log.info(
                f"{self.url} does not answer, trying for {self._patience.seconds:.0f} s: {_shorten(error)}"
            )

    def _describe_limit(self) -> str:
        return "stopped on request" if self.is_given_up else f"tried for {self._patience.seconds:.0f} s"

    def _name(self, key: str) -> str:
        return f"{self.url}/{key}" if key else self.url


def open_object_store(url: str, patience: Patience) -> ObjectStore:
    """Return the store below `url`, such as s3://bucket/prefix, without sending a request.

    Credentials, region and endpoint come from the environment (AWS_*, GOOGLE_*) or the machine.

    Raises:
        UsageError: A required package is missing, or the environment has invalid settings.
    """
    url = url.rstrip("/")
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    extra = {"s3": "s3", "gs": "gcs"}[scheme]
    try:
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore, S3Store
    except ImportError as exc:
        raise UsageError(
            f"{url}: writing to object stores needs the extra {extra!r}: pip install 'synthia-batch[{extra}]'"
        ) from exc
    client_options: dict[str, Any] = {
        "timeout": timedelta(seconds=patience.request_seconds),
        "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, patience.request_seconds)),
        # Only if such an endpoint is configured, such as a server on this machine.
        "allow_http": find_endpoint(scheme, os.environ).startswith("http://"),
    }
    shared: dict[str, Any] = {"client_options": client_options, "retry_config": {"max_retries": 0}}
    try:
        if scheme == "gs":
            return ObjectStore(url, GCSStore(bucket, prefix=prefix, **shared), patience)
        # With a checksum, the store refuses a body that was altered in transit.
        s3 = S3Store(bucket, prefix=prefix, checksum_algorithm="SHA256", **shared)
        return ObjectStore(url, s3, patience)
    except (BaseError, ValueError) as exc:
        raise UsageError(f"{url}: {_shorten(exc)}") from exc


def _name_type(key: str) -> str:
    types = {"json": "application/json", "md": "text/markdown", "html": "text/html"}
    return types.get(key.rpartition(".")[2], "application/octet-stream")


def _shorten(error: Exception) -> str:
    # The other lines, about a dozen, are the library's debug output.
    return str(error).partition("\n")[0].strip()
