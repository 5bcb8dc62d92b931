"""Fills the journal of one large shard, and publishes it: a process of its own for test_samples_per_file.

    python publish_large.py DIRECTORY SAMPLES CHARACTERS fill|publish [KILL_AT]

`publish` prints the most memory that the process had, in bytes. With KILL_AT it kills itself at that system
call of the publication, counted from 1; it prints nothing then.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from synthia_batch.core.types import Failed, Finished, Message, Record, Row
from synthia_batch.job.plan import plan_shards
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.runner.directory.assembler import Assembler
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, read_ledger
from synthia_batch.storage.lock import WriterEpoch
from synthia_batch.storage.parts.schema import PartFormat
from synthia_batch.storage.recovery import inspect_shard

WRITER = WriterEpoch(plan_digest="beef", epoch=1, boot="b")
CALLS = ("write", "fsync", "fdatasync", "rename", "unlink")


def answer(ordinal: int, characters: int) -> Record:
    if ordinal % 7 == 3:
        return Failed(ordinal=ordinal, code="engine_error", message="x")
    text = hashlib.shake_128(b"%d" % ordinal).hexdigest(characters // 2)
    return Finished(
        ordinal=ordinal, response=text, reasoning=None, finish_reason="stop",
        prompt_tokens=8, completion_tokens=len(text) // 4,
    )  # fmt: skip


def read_rows(scan: object, first: int, stop: int) -> Iterator[Row]:
    for index in range(first, stop):
        turns = (Message("user", f"Question {index}?"),)
        yield Row(index=index, id=f"{index}", messages=turns, system=None, kept={}, line=index + 1)


def make_assembler() -> Assembler:
    source: Any = SimpleNamespace(check=lambda scan: None, read_rows=read_rows)
    plan = PlanSpec(
        systems=(SystemText(name="none", text=""),), system_column=None, replace_own_system=True,
        num_samples=1, seed=0,
    )  # fmt: skip
    part_format = PartFormat(model="m", source_file="f", metadata={})
    return Assembler(source=source, scan=source, plan=plan, part_format=part_format)


def fill(run_dir: RunDir, samples: int, characters: int) -> None:
    (shard,) = plan_shards(samples, 1, samples)
    run_dir.create()
    journal = Journal.open(run_dir.journal(shard), shard, WRITER)
    # Not in order, as engines end them.
    ordinals = [
        n for first in range(0, samples, 500) for n in reversed(range(first, min(first + 500, samples)))
    ]
    for first in range(0, samples, 100):
        journal.append([answer(n, characters) for n in ordinals[first : first + 100]])
    journal.sync()
    journal.close()


def publish(run_dir: RunDir, samples: int, kill_at: int) -> None:
    shards = plan_shards(samples, 1, samples)
    latest = read_ledger(run_dir.ledger, WRITER.plan_digest).latest
    states = [inspect_shard(run_dir, shard, latest, WRITER) for shard in shards]
    ledger = PartLedger.open(run_dir.ledger, WRITER)
    store = RunStore(
        run_dir=run_dir,
        shards=shards,
        states=states,
        writer=WRITER,
        ledger=ledger,
        assembler=make_assembler(),
    )
    if kill_at:
        kill_self_at(kill_at)
    with store:
        store.publish_filled()


def kill_self_at(number: int) -> None:
    count = 0

    def watch(call: Any) -> Any:
        def called(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if call is write:  # half of it
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return called

    write = os.write
    for name in CALLS:
        setattr(os, name, watch(getattr(os, name)))


def main(directory: str, samples: str, characters: str, what: str, kill_at: str = "0") -> None:
    run_dir = RunDir(Path(directory))
    if what == "fill":
        fill(run_dir, int(samples), int(characters))
        return
    publish(run_dir, int(samples), int(kill_at))
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
