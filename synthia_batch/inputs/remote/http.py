"""Files on web servers, read in ranges where the server supports them."""

import base64
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from synthia_batch.core.backoff import parse_retry_after
from synthia_batch.core.errors import UsageError
from synthia_batch.core.masking import (
    mask_address,
    mask_text,
    remember_address,
    remember_secret,
    strip_address,
)
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
                f"{strip_address(key)}: a web server has no listing for a pattern; name each file"
            )
        with _open(key, {"Range": "bytes=0-0"}) as answer:
            headers = answer.headers
            total = headers.get("Content-Range", "").rpartition("/")[2]
            size = total if answer.status == http.client.PARTIAL_CONTENT else headers.get("Content-Length")
        return RemoteFile(
            url=strip_address(key),
            key=key,
            size=int(size) if size and size.isdigit() else None,
            version=_read_version(headers),
        )

    def list_keys(self, prefix: str) -> list[str]:
        """Return nothing: a web server has no listing."""
        return []

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
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
            raise EndUnknown(strip_address(file.key))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web servers only; user and password go to no other host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise UsageError(
                f"{strip_address(req.full_url)}: the server redirects to {mask_address(newurl)}, which is no "
                "http or https address; check the address"
            )
        remember_address(newurl)
        follow = super().redirect_request(req, fp, code, msg, headers, newurl)
        if follow is not None and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            follow.unredirected_hdrs.update(req.unredirected_hdrs)
        return follow


def _make_opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https, and unlike urllib's default neither ftp nor files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _make_request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """Return the request of `url`, with its user and password as basic authentication (RFC 7617)."""
    parts = urlsplit(url)
    own = {"Accept-Encoding": "identity", "User-Agent": "synthia-batch", **headers}
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers=own)
    if at:
        token = base64.b64encode(unquote_to_bytes(user)).decode()
        remember_secret(token)
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _open(url: str, headers: Mapping[str, str]) -> Any:
    """Return the response. Raises Broken if the request can be retried, else UsageError."""
    shown = strip_address(url)
    try:
        return _make_opener().open(_make_request(url, headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code in _RETRIABLE:
                asked_seconds = parse_retry_after(exc.headers.get("Retry-After", ""))
                raise Broken(f"the server answers {exc.code}", asked_seconds) from exc
            raise UsageError(
                f"{shown}: the server answers {exc.code} {exc.reason}; check the address and "
                "your access to it"
            ) from exc
    except (http.client.InvalidURL, ValueError) as exc:
        # Its message quotes the address, in parts that cannot be told from a password.
        raise UsageError(
            f"{shown}: not a valid address; expected http(s)://HOST/PATH, a port in digits, and no spaces"
        ) from exc
    except (http.client.HTTPException, OSError) as exc:
        raise Broken(mask_text(str(getattr(exc, "reason", None) or exc) or repr(exc))) from exc


def _read_version(headers: Mapping[str, str]) -> str | None:
    return headers.get("ETag") or headers.get("Last-Modified")
