"""Claims a prefix in an object store for one run, after checking its owner and content."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.errors import IntegrityError, SynthiaBatchError
from synthia_batch.job.resolved import Remote
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.remote.lease import RENEWALS, Lease, LeaseRecord, read_lease
from synthia_batch.storage.remote.mirror import Mirror
from synthia_batch.storage.remote.object_store import ObjectStore, Patience, open_object_store
from synthia_batch.storage.remote.restore import (
    read_remote_plan,
    refuse_other_objects,
    refuse_other_remote_identity,
    restore_run,
)


@contextmanager
def claim_remote(
    remote: Remote,
    run_dir: RunDir,
    lock: RunLock,
    identity: Mapping[str, Any],
    signalled_seconds: Callable[[], float],
) -> Iterator[Mirror]:
    """Claim the prefix for the block, under the lock of the state directory, which is restored if lost.

    `signalled_seconds` returns for how long the run has been asked to stop: no store is waited for then.
    """
    store, of_lease = open_remote(remote), _open_for_lease(remote)
    store.signalled_seconds = of_lease.signalled_seconds = signalled_seconds
    state = _name_state(run_dir)
    # Also checked before the lease, so that a refusal changes nothing.
    plan = read_remote_plan(store)
    if plan is not None:
        refuse_other_remote_identity(store, plan, identity)
        _refuse_outdated(store, run_dir, state, read_lease(store))
    with Lease.acquire(of_lease, state, remote.lease_seconds) as lease:
        plan = _check_again(store, run_dir, lease, identity)
        if plan is not None and not run_dir.plan.exists():
            restore_run(store, run_dir, plan, lock.begin_epoch(after=0).epoch)
        mirror = Mirror(store=store, lease=lease, run_dir=run_dir)
        try:
            yield mirror
        finally:
            mirror.close()


def open_remote(remote: Remote) -> ObjectStore:
    """Return the store of a job, without sending a request."""
    patience = Patience(request_seconds=remote.request_seconds, seconds=remote.patience_seconds)
    return open_object_store(remote.url, patience)


def _open_for_lease(remote: Remote) -> ObjectStore:
    # A renewal that takes longer than this would come too late.
    seconds = min(remote.request_seconds, remote.lease_seconds / RENEWALS)
    return open_object_store(remote.url, Patience(request_seconds=seconds, seconds=remote.lease_seconds))


def _name_state(run_dir: RunDir) -> str:
    """Return the state directory's unique name: a later one at the same path gets another name."""
    known = read_checksummed(run_dir.state_name)
    if known is None:
        known = {"state": uuid.uuid4().hex}
        publish_bytes(run_dir.state_name, encode_checksummed(known))
    return str(known["state"])


def _check_again(
    store: ObjectStore, run_dir: RunDir, lease: Lease, identity: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the plan of the run in the store, or None; under the lease, nobody else can change it."""
    try:
        plan = read_remote_plan(store)
        if plan is None:
            # Only here, since only a write (the lease) detects a missing bucket.
            refuse_other_objects(store)
        else:
            refuse_other_remote_identity(store, plan, identity)
            _refuse_outdated(store, run_dir, lease.state, lease.previous)
    except SynthiaBatchError:
        lease.withdraw()
        raise
    return plan


def _refuse_outdated(store: ObjectStore, run_dir: RunDir, state: str, last: LeaseRecord | None) -> None:
    """Return unless another state directory has continued the run."""
    if run_dir.plan.exists() and last is not None and last.state != state:
        raise IntegrityError(
            f"{last.describe(store.url)}, from another state directory than {run_dir.root}, which may be "
            "behind it; nothing was touched\n"
            "  resume with that one, or name a new directory with --state: it is restored from the store"
        )
