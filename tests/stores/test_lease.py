"""The lease alone, on a store in memory: who gets it, and who finds out that it is gone."""

import os
import socket
import threading
import time
from typing import Any

import pytest
from obstore.store import MemoryStore

from synthia_batch.errors import LeaseLost, RunLocked
from synthia_batch.storage.remote.lease import Lease, read_lease
from synthia_batch.storage.remote.object_metadata import Version
from synthia_batch.storage.remote.object_store import ObjectStore, Patience


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore("s3://bucket/run", MemoryStore(), Patience(request_seconds=1, seconds=1))


def test_while_it_lasts_another_is_refused_and_told_who_has_it(store: ObjectStore) -> None:
    Lease.acquire(store, "a", 60)
    with pytest.raises(RunLocked, match=f"written by pid {os.getpid()} on {socket.gethostname()}") as refused:
        Lease.acquire(store, "b", 60)
    assert refused.value.exit_code == 4
    assert not isinstance(refused.value, LeaseLost)


def test_the_next_run_of_the_same_state_directory_takes_it_at_once(store: ObjectStore) -> None:
    dead = Lease.acquire(store, "a", 60)
    assert Lease.acquire(store, "a", 60).previous is not None
    with pytest.raises(LeaseLost):
        dead.renew()


def test_after_its_end_another_takes_it_and_the_first_finds_out(store: ObjectStore) -> None:
    first = Lease.acquire(store, "a", 0.05)
    first.ensure()
    time.sleep(0.06)
    second = Lease.acquire(store, "b", 60)
    first.check()  # Nothing was sent yet.
    with pytest.raises(LeaseLost, match="was taken over by pid"):
        first.ensure()
    with pytest.raises(LeaseLost):
        first.check()
    second.ensure()
    first.release()
    found = read_lease(store)
    assert found is not None
    assert (found.state, found.epoch, found.is_free) == ("b", 2, False)


def test_after_its_end_it_can_be_renewed_where_nobody_took_it(store: ObjectStore) -> None:
    lease = Lease.acquire(store, "a", 0.05)
    time.sleep(0.06)
    lease.ensure()
    with pytest.raises(RunLocked):
        Lease.acquire(store, "b", 60)


def test_its_thread_renews_it_and_it_is_given_back(store: ObjectStore) -> None:
    with Lease.acquire(store, "a", 3):
        time.sleep(3.5)
        with pytest.raises(RunLocked):
            Lease.acquire(store, "b", 60)
    assert Lease.acquire(store, "b", 60).previous is not None


def test_a_late_request_of_a_process_that_has_ended_does_not_refuse_the_next(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Lease.acquire(store, "a", 0.05)
    time.sleep(0.06)
    replace = store.replace

    def replace_late(*arguments: Any) -> Version | None:
        monkeypatch.setattr(store, "replace", replace)
        dead.release()  # Arrives between reading the lease and taking it.
        return replace(*arguments)

    monkeypatch.setattr(store, "replace", replace_late)
    taken = Lease.acquire(store, "b", 60)
    assert (taken.state, taken.previous and taken.previous.ends_at) == ("b", 0.0)
    with pytest.raises(RunLocked):
        Lease.acquire(store, "c", 60)


def test_what_takes_no_change_is_refused_and_not_tried_for_ever(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lease.acquire(store, "a", 60).release()
    tries: list[str] = []
    monkeypatch.setattr(store, "replace", lambda key, *_: tries.append(key))
    with pytest.raises(RunLocked, match="was last written by pid"):
        Lease.acquire(store, "b", 60)
    assert len(tries) == 5


def test_of_many_that_want_it_one_gets_it(store: ObjectStore) -> None:
    start, taken = threading.Barrier(8), []

    def take(name: str) -> None:
        start.wait()
        try:
            Lease.acquire(store, name, 60)
        except RunLocked:
            return
        taken.append(name)

    threads = [threading.Thread(target=take, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    found = read_lease(store)
    assert found is not None
    assert found.state == taken[0]


def test_a_renewal_whose_answer_was_lost_is_known_by_its_nonce(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.acquire(store, "a", 60)
    replace = ObjectStore.replace
    lost: list[str] = []

    def replace_and_lose(self: ObjectStore, key: str, *rest: object) -> object:
        answer = replace(self, key, *rest)  # type: ignore[arg-type]
        if not lost:
            # As if sent twice: the second finds that it is not the version that it knew.
            lost.append(key)
            return replace(self, key, *rest)  # type: ignore[arg-type]
        return answer

    monkeypatch.setattr(ObjectStore, "replace", replace_and_lose)
    lease.renew()
    assert lost
    lease.renew()
    lease.check()


def test_a_lease_that_is_withdrawn_tells_of_the_one_before(store: ObjectStore) -> None:
    Lease.acquire(store, "a", 60).release()
    Lease.acquire(store, "b", 60).withdraw()
    found = read_lease(store)
    assert found is not None
    assert (found.state, found.is_free) == ("a", True)


def test_a_lease_that_was_not_meant_for_the_prefix_is_removed_again(store: ObjectStore) -> None:
    Lease.acquire(store, "a", 60).withdraw()
    assert read_lease(store) is None
