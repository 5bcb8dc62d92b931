"""All errors that the package raises deliberately, with their exit codes.

SynthiaBatchError
├── UsageError            2   a flag, a job file or an input that cannot be used
│   └── InputRefused      2   faults found in the input, up to ten of them listed
├── ModelUnavailable      2   the model named cannot be found or prepared
│   └── ModelElsewhere    2   it cannot be had on this machine, but perhaps on another
├── NothingSelected       3   a selection would keep no sample
├── IdentityMismatch      4   the run directory belongs to another job
├── IntegrityError        4   a file of the run is damaged
│   └── JournalCorrupt    4   a complete frame fails its checksum, or names another shard
├── RunLocked             4   another process owns the run directory
│   └── LeaseLost         4   another machine has taken over the object store prefix
├── DeterminismBroken     4   the same prompt gave two answers in strict mode
├── StorageFailed         74  a write, fsync or rename failed, which ends the run
│   └── StoreUnreachable  74  an object store does not answer
├── PoolFailed            69  no engine is left
├── EngineOutOfMemory     -   an engine ran out of memory: its worker restarts with a smaller batch
└── SampleRefused         -   the engine rejects one prompt: becomes data in failed/
"""

from collections.abc import Mapping, Sequence

from synthia_batch.core.masking import mask_known, mask_text

EXIT_CODES: Mapping[int, str] = {
    0: "complete",
    1: "a bug: please report it",
    2: "a flag, the job file, the model or the input cannot be used, or `doctor` found a fault",
    3: "more failures than `--max-failures`, which ends a run early; nothing but failures; nothing selected",
    4: "identity, integrity, lock or determinism: the message names what was refused or is damaged",
    69: "no engine is left; the reason is printed",
    74: "the disk or the object store refused a write, or does not answer",
    75: "drained on SIGTERM, SIGHUP or the deadline: run the same command again",
    130: "drained or ended on Ctrl-C",
}
"""What the exit code of a command means. 69, 74 and 75 are those of sysexits.h."""


class SynthiaBatchError(Exception):
    """The base class. Messages say what happened, where, and what to do next, and hold no secrets."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(mask_text(message))


class UsageError(SynthiaBatchError):
    """A flag, a job file or an input that cannot be used."""

    exit_code = 2


class InputRefused(UsageError):
    """The input has faults; nothing was started.

    `faults` are at most ten texts of the form "file:line: fault"; `more` is true if there are others.
    """

    def __init__(self, faults: Sequence[str], *, more: bool = False) -> None:
        self.faults = tuple(map(mask_text, faults))
        self.more = more
        lines = ["the input cannot be used; nothing was started:", *(f"  {fault}" for fault in faults)]
        if more:
            lines.append("  ... and more")
        lines.append("fix the input, then run the same command again; --on-bad-row fail sets bad rows aside")

        super().__init__("\n".join(lines))


class ModelUnavailable(SynthiaBatchError):
    """The model named cannot be found or prepared."""

    exit_code = 2


class ModelElsewhere(ModelUnavailable):
    """The model is too large for this machine, or the Hub cannot be reached from it."""


class NothingSelected(SynthiaBatchError):
    """A selection would keep no sample: there is no such dataset.

    Of the run's `samples`, `dropped` counts those that a step has dropped. If the selection is the `stage` of
    a pipeline, `made` is the `PipelineResult` of those before it.
    """

    exit_code = 3

    def __init__(self, message: str, *, samples: int, dropped: Mapping[str, int]) -> None:
        super().__init__(message)
        self.samples = samples
        self.dropped = dropped
        self.stage = ""
        self.made: object = None


class IdentityMismatch(SynthiaBatchError):
    """The run directory belongs to a job with another identity."""

    exit_code = 4


class IntegrityError(SynthiaBatchError):
    """A file of the run directory differs from what the run wrote.

    For the findings of `verify`, `reason` is the message without file and advice, and `offset` the
    position in the file in bytes; both may be unset.
    """

    exit_code = 4

    def __init__(self, message: str, *, reason: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.offset = offset


class JournalCorrupt(IntegrityError):
    """A journal is damaged before its torn last frame."""


class RunLocked(SynthiaBatchError):
    """Another process owns the run directory, or its file system does not support locks."""

    exit_code = 4


class LeaseLost(RunLocked):
    """This process was suspended for too long, and another one now writes to the object store."""


class DeterminismBroken(SynthiaBatchError):
    """The canary prompts gave different answers despite strict determinism."""

    exit_code = 4


class StorageFailed(SynthiaBatchError):
    """A write, fsync or rename failed. It is never retried; finished samples are kept."""

    exit_code = 74  # EX_IOERR of sysexits.h


class StoreUnreachable(StorageFailed):
    """An object store did not answer in time; whether it stored the last writes is unknown."""


class PoolFailed(SynthiaBatchError):
    """No engine is left, or none could start."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class EngineOutOfMemory(SynthiaBatchError):
    """An engine ran out of memory, at its start or in a step.

    Ends its worker, which restarts with a smaller batch; never ends the run.
    """


class SampleRefused(SynthiaBatchError):
    """The engine rejects one prompt. Becomes a row of failed/; never ends the run.

    `code` is one of `core.failure_codes.FAILURE_CODES`.
    """

    def __init__(self, code: str, message: str) -> None:
        # It becomes data: an address that it quotes from a row is no secret.
        Exception.__init__(self, mask_known(message))
        self.code = code
