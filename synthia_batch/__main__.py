"""The command line as a program: `synthia-batch`, and the same as `python -m synthia_batch`."""

import atexit
import gc

from synthia_batch.cli import main


def start() -> None:
    """Run the command line in a process that is there for nothing else, and ends with it."""
    # As it ends, Python looks twice through all that a garbage collector could find: for a run, most of
    # a second in which a person waits for their prompt.
    atexit.register(gc.freeze)
    main()


if __name__ == "__main__":
    start()
