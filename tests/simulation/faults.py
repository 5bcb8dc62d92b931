"""What a simulated world raises: the end of a process, and the finding of a fault."""


class Killed(BaseException):
    """The simulated process is gone. Whatever its code still does has no effect."""


class Violation(AssertionError):
    """An invariant does not hold: `name` is that of the function that says so."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name
