"""Whether a Ray cluster answers at an address, told in seconds. Ray itself takes more than half a minute."""

import os
import socket

from synthia_batch.errors import PoolFailed, UsageError

PROBE_SECONDS = 5.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How an HTTP/2 client opens a connection (RFC 9113, 3.4), with no settings of its own. Ray's head
speaks gRPC, which is HTTP/2, and answers with its settings at once."""
_HEADER_BYTES = 9
_TYPE, _SETTINGS = 3, 4


def check_form(address: str) -> None:
    """Return if `address` is of a kind that a job can join.

    Raises:
        UsageError: It is another kind of Ray address, most likely taken from another tool.
    """
    scheme, separator, rest = address.partition("://")
    if not separator and (address == "auto" or address.rpartition(":")[2].isdecimal()):
        return
    if not separator:
        raise UsageError(
            f"--ray-address {address}: say the port of the cluster's head, too, as {address}:6379"
        )
    if scheme == "ray":
        raise UsageError(
            f"--ray-address {address}: a job cannot be driven through Ray Client, whose calls lose their "
            "answers when the connection breaks. Run the command on a machine of the cluster with "
            f"--ray-address auto, or from here with `ray job submit` (see README, On a cluster)"
        )
    raise UsageError(
        f"--ray-address {address}: give the head's own address, HOST:6379 (or auto on one of its machines); "
        f"{scheme}://{rest} is for `ray job submit --address`"
    )


def probe_head(address: str, timeout_seconds: float = PROBE_SECONDS) -> None:
    """Return if something that may be Ray's head answers at `address`, HOST:PORT.

    Raises:
        PoolFailed: Nothing does, or something else.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return  # The greeting is encrypted there; that the port is open must do.
            connection.settimeout(timeout_seconds)
            connection.sendall(_GREETING)
            answer = connection.recv(_HEADER_BYTES, socket.MSG_WAITALL)
    except TimeoutError as exc:
        raise PoolFailed(_say(address, f"nothing answered in {timeout_seconds:g} s")) from exc
    except (OSError, ValueError) as exc:
        raise PoolFailed(_say(address, str(exc))) from exc
    if len(answer) < _HEADER_BYTES or answer[_TYPE] != _SETTINGS:
        raise PoolFailed(_say(address, "what answers there is no Ray head"))


def _say(address: str, reason: str) -> str:
    return (
        f"no Ray cluster at {address}: {reason}. Is the cluster up (`ray status --address {address}`), and "
        "is this the port of its head (6379 unless `ray start --port` said otherwise, not the dashboard's "
        "8265 nor Ray Client's 10001)? Without --ray-address and RAY_ADDRESS the job starts a Ray of its own"
    )
