"""Every error that the package raises on purpose, and the exit code of each.

SynthiaBatchError
├── UsageError            2   a flag, a job file or an input that cannot be used
│   └── InputRefused      2   faults found in the input, up to ten of them listed
├── ModelUnavailable      2   the model named cannot be found or prepared
├── IdentityMismatch      4   the run directory belongs to another job
├── IntegrityError        4   a file of the run is not what it must be
│   └── JournalCorrupt    4   a complete frame fails its checksum, or names another shard
├── RunLocked             4   another process owns the run directory
│   └── LeaseLost         4   another machine has taken over the object store that was written to
├── DeterminismBroken     4   the same prompt gave two answers in strict mode
├── StorageFailed         74  a write, fsync or rename failed; the run ended where it stood
│   └── StoreUnreachable  74  an object store does not answer
├── PoolFailed            69  no engine is left to go on
├── EngineOutOfMemory     -   an engine needs more memory than there is: it starts again with less
└── SampleRefused         -   the engine will not take this one prompt: data, not an error
"""

from collections.abc import Sequence


class SynthiaBatchError(Exception):
    """The root. Its text says what happened, where, and what to do next."""

    exit_code = 1


class UsageError(SynthiaBatchError):
    """A flag, a job file or an input that cannot be used."""

    exit_code = 2


class InputRefused(UsageError):
    """The input has faults; nothing was started.

    `faults` are texts of the form "file:line: what is wrong", ten at most; `more` says whether
    there were others behind them.
    """

    def __init__(self, faults: Sequence[str], *, more: bool = False) -> None:
        self.faults = tuple(faults)
        self.more = more
        lines = ["the input cannot be used; nothing was started:", *(f"  {fault}" for fault in faults)]
        if more:
            lines.append("  ... and more")
        lines.append("mend the input, then run the same command again")
        super().__init__("\n".join(lines))


class ModelUnavailable(SynthiaBatchError):
    """The model named cannot be found or prepared."""

    exit_code = 2


class IdentityMismatch(SynthiaBatchError):
    """The run directory belongs to a job with another identity."""

    exit_code = 4


class IntegrityError(SynthiaBatchError):
    """A file of the run directory is not what the run wrote.

    `reason` says it without the file and the advice, `offset` where in the file, in bytes; both
    are for `verify`, which lists what it finds, and empty where the text alone says it.
    """

    exit_code = 4

    def __init__(self, message: str, *, reason: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.offset = offset


class JournalCorrupt(IntegrityError):
    """A journal is damaged before its torn tail."""


class RunLocked(SynthiaBatchError):
    """Another process owns the run directory, or its file system has no working locks."""

    exit_code = 4


class LeaseLost(RunLocked):
    """This process stood still for too long, and another writes to the object store now."""


class DeterminismBroken(SynthiaBatchError):
    """The canary prompts gave different answers where strict determinism promises one."""

    exit_code = 4


class StorageFailed(SynthiaBatchError):
    """A write, fsync or rename failed. What was finished before is kept; it is never retried."""

    exit_code = 74  # EX_IOERR of sysexits.h


class StoreUnreachable(StorageFailed):
    """An object store did not answer for as long as was waited. What it has, and has not, is not known."""


class PoolFailed(SynthiaBatchError):
    """No engine is left to go on, or none could start."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class EngineOutOfMemory(SynthiaBatchError):
    """An engine needs more memory than there is, at its start or in a step.

    Ends its worker, which starts again with a smaller batch; never an exit.
    """


class SampleRefused(SynthiaBatchError):
    """The engine will not take this one prompt. Becomes a row of failed/, never an exit.

    `code` is stable, see ARCHITECTURE.md.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
