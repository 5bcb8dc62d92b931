"""Checks within seconds whether a Ray cluster answers at an address. Ray itself takes over half a minute."""

import os
import socket

from synthia_batch.core.errors import PoolFailed, UsageError

PROBE_SECONDS = 5.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How an HTTP/2 client opens a connection (RFC 9113, 3.4), with empty settings. Ray's head uses gRPC, which
is HTTP/2, and answers with its settings at once."""
_HEADER_BYTES = 9
_TYPE, _SETTINGS = 3, 4


def check_form(address: str) -> None:
    """Check that `address` is of a kind that a job can join.

    Raises:
        UsageError: It is another kind of Ray address, probably one for another tool.
    """
    scheme, separator, rest = address.partition("://")
    if not separator and (address == "auto" or address.rpartition(":")[2].isdecimal()):
        return
    if not separator:
        raise UsageError(f"--ray-address {address}: add the port of the cluster's head, as in {address}:6379")
    if scheme == "ray":
        raise UsageError(
            f"--ray-address {address}: a job cannot run through Ray Client, whose calls lose their "
            "results when the connection breaks. Run the command on a machine of the cluster with "
            f"--ray-address auto, or from here with `ray job submit` (see docs/how-to/cluster.md)"
        )
    raise UsageError(
        f"--ray-address {address}: expected the head's address, HOST:6379 (or auto on one of its machines); "
        f"{scheme}://{rest} is for `ray job submit --address`"
    )


def probe_head(address: str, timeout_seconds: float = PROBE_SECONDS) -> None:
    """Check that a possible Ray head answers at `address`, HOST:PORT.

    Raises:
        PoolFailed: Nothing answers, or something else does.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return  # The greeting would have to be encrypted; an open port must suffice.
            connection.settimeout(timeout_seconds)
            connection.sendall(_GREETING)
            answer = connection.recv(_HEADER_BYTES, socket.MSG_WAITALL)
    except TimeoutError as exc:
        raise PoolFailed(_explain(address, f"nothing answered in {timeout_seconds:g} s")) from exc
    except (OSError, ValueError) as exc:
        raise PoolFailed(_explain(address, str(exc))) from exc
    if len(answer) < _HEADER_BYTES or answer[_TYPE] != _SETTINGS:
        raise PoolFailed(_explain(address, "the server there is no Ray head"))


def _explain(address: str, reason: str) -> str:
    return (
        f"no Ray cluster at {address}: {reason}. Check that the cluster is up (`ray status --address "
        f"{address}`) and that this is the port of its head (6379 unless `ray start --port` set another; not "
        "the dashboard's 8265 or Ray Client's 10001). Without --ray-address and RAY_ADDRESS the job "
        "starts its own Ray"
    )
