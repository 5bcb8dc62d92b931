"""Files on web servers, read in ranges where the server supports them."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from synthia_batch.core.backoff import parse_retry_after
from synthia_batch.errors import UsageError
from synthia_batch.inputs.remote.transport import Broken, Changed, EndUnknown, RemoteFile

TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1024 * 1024
_RETRIABLE = (408, 425, 429, 500, 502, 503, 504)


class WebStore:
    """Files by http(s) address. A web server has no listing."""

    def look(self, key: str) -> RemoteFile:
        """Return the file at the address `key`, by a request of its first byte: some servers refuse HEAD."""
        if "*" in urlsplit(key).path:
            raise UsageError(
                f"{hide_secrets(key)}: a web server has no listing for a pattern; name each file"
            )
        with _open(key, {"Range": "bytes=0-0"}) as answer:
            headers = answer.headers
            total = headers.get("Content-Range", "").rpartition("/")[2]
            size = total if answer.status == http.client.PARTIAL_CONTENT else headers.get("Content-Length")
        return RemoteFile(
            url=hide_secrets(key),
            key=key,
            size=int(size) if size and size.isdigit() else None,
            version=_read_version(headers),
        )

    def list_keys(self, prefix: str) -> list[str]:
        """Return nothing: a web server has no listing."""
        return []

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the bytes of `file` from `start` on."""
        with _open(file.key, {"Range": f"bytes={start}-"} if start else {}) as answer:
            if _read_version(answer.headers) != file.version:
                raise Changed("the file changed during the download")
            if start and answer.status != http.client.PARTIAL_CONTENT:
                raise Changed("the connection broke, and the server cannot resume a file")
            # The length that is left; chunks have an end of their own.
            has_end = answer.length is not None or answer.chunked
            try:
                while content := answer.read(CHUNK_BYTES):
                    yield content
                if answer.length and file.size is None:
                    raise Broken(f"the answer ends {answer.length:,} bytes early")
            except (http.client.HTTPException, OSError) as exc:
                raise Broken(str(exc) or repr(exc)) from exc
        if not has_end:
            raise EndUnknown(hide_secrets(file.key))


def _open(url: str, headers: Mapping[str, str]) -> Any:
    """Return the response. Raises Broken if the request can be retried, else UsageError."""
    request = urllib.request.Request(
        url, headers={"Accept-Encoding": "identity", "User-Agent": "synthia-batch", **headers}
    )
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code in _RETRIABLE:
                asked_seconds = parse_retry_after(exc.headers.get("Retry-After", ""))
                raise Broken(f"the server answers {exc.code}", asked_seconds) from exc
            raise UsageError(
                f"{hide_secrets(url)}: the server answers {exc.code} {exc.reason}; check the address and "
                "your access to it"
            ) from exc
    except (http.client.InvalidURL, ValueError) as exc:
        raise UsageError(f"{hide_secrets(url)}: not a valid address: {exc}") from exc
    except (http.client.HTTPException, OSError) as exc:
        raise Broken(str(getattr(exc, "reason", None) or exc) or repr(exc)) from exc


def _read_version(headers: Mapping[str, str]) -> str | None:
    return headers.get("ETag") or headers.get("Last-Modified")


def hide_secrets(url: str) -> str:
    """Return the address without the parts that can be secret: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
