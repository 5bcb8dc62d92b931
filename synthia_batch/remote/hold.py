"""A prefix in an object store taken for one run: whose it is, what is there, and who may write."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from synthia_batch.errors import IntegrityError, UsageError
from synthia_batch.job.resolved import Remote
from synthia_batch.remote.adopt import (
    adopt_run,
    read_remote_plan,
    refuse_other_objects,
    refuse_other_remote_identity,
)
from synthia_batch.remote.lease import RENEWALS, Lease
from synthia_batch.remote.mirror import Mirror
from synthia_batch.remote.object_store import ObjectStore, Patience, open_object_store
from synthia_batch.store.atomic import publish_bytes
from synthia_batch.store.lock import RunLock
from synthia_batch.store.run_dir import RunDir
from synthia_batch.store.sealed import read_sealed, seal


@contextmanager
def hold_remote(
    remote: Remote, run_dir: RunDir, lock: RunLock, identity: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Mirror]:
    """Take the prefix for the block, under the lock of the state directory. A lost one is made again.

    Raises:
        IdentityMismatch: The run there is another job.
        RunLocked: Another process writes there.
        IntegrityError: Another state directory has got on with the run since this one had it.
        UsageError: There is no such bucket, or the prefix holds something else, or the store ignores
            conditions.
        StorageFailed: The store does not answer, or does not allow it.
    """
    store = open_remote(remote, say)
    # Before the lease, too: a job that is refused touches nothing.
    plan = read_remote_plan(store)
    if plan is not None:
        refuse_other_remote_identity(store, plan, identity)
    with Lease.take(_open_for_lease(remote), _name_state(run_dir), remote.lease_seconds) as lease:
        # Another may have begun the run before the lease was ours.
        plan = read_remote_plan(store)
        if plan is not None:
            refuse_other_remote_identity(store, plan, identity)
            _catch_up(store, run_dir, lock, lease, plan, say)
        else:
            _require_empty(store, lease)
        mirror = Mirror(store=store, lease=lease, run_dir=run_dir, say=say)
        try:
            yield mirror
        finally:
            mirror.close()


def open_remote(remote: Remote, say: Callable[[str], None]) -> ObjectStore:
    """Return the store of a job. Sends nothing yet. `say` is told when it has to be waited for.

    Raises:
        UsageError: What this needs is not installed.
    """
    patience = Patience(request_seconds=remote.request_seconds, seconds=remote.patience_seconds)
    return open_object_store(remote.url, patience, say)


def _open_for_lease(remote: Remote) -> ObjectStore:
    # A renewal that is waited for longer than this would come too late.
    seconds = min(remote.request_seconds, remote.lease_seconds / RENEWALS)
    return open_object_store(remote.url, Patience(request_seconds=seconds, seconds=remote.lease_seconds))


def _name_state(run_dir: RunDir) -> str:
    """Return the name of the state directory, which no other has, also not a later one at the same place."""
    known = read_sealed(run_dir.state_name)
    if known is None:
        known = {"state": uuid.uuid4().hex}
        publish_bytes(run_dir.state_name, seal(known))
    return str(known["state"])


def _require_empty(store: ObjectStore, lease: Lease) -> None:
    # Under the lease, since only a write tells that there is no such bucket.
    try:
        refuse_other_objects(store)
    except UsageError:
        lease.withdraw()
        raise


def _catch_up(
    store: ObjectStore,
    run_dir: RunDir,
    lock: RunLock,
    lease: Lease,
    plan: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    if not run_dir.plan.exists():
        adopted = adopt_run(store, run_dir, plan, lock.begin_epoch(after=0).epoch)
        say(f"{store.url}: adopted {adopted.shards} of {adopted.total} shards that are there")
        return
    last = lease.previous
    if last is not None and last.state != lease.state:
        raise IntegrityError(
            f"{last.describe(store.url)}, from another state directory than {run_dir.root}, which may be "
            "behind it; nothing was touched\n"
            "  go on with that one, or name a new directory with --state: it adopts what is in the store"
        )
