"""A process that has imported everything and opened nothing, and forks a `synthia-batch` on request.

Starting Python and importing pyarrow costs a second; a fork costs a hundredth of one. So a test can
kill thousands of real processes in minutes. Requests come as lines of JSON on stdin, one answer
each goes to stdout.
"""

import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
PATIENCE_SECONDS = 60
IMPORTS = (
    "pandas",  # pyarrow looks for it at the first array
    "pyarrow.compute",
    "pyarrow.parquet",
    "pydantic.type_adapter",
    "typer._adapters",
    "synthia_batch.cli.commands.preview",
    "synthia_batch.cli.commands.probe",
    "synthia_batch.cli.commands.retry",
    "synthia_batch.cli.commands.run",
    "synthia_batch.workers.scripted",
    "synthia_batch.workers.pools.local",
    "synthia_batch.operations.preview",
    "synthia_batch.operations.probe",
    "synthia_batch.runner.retry",
    "synthia_batch.runner.run",
    "synthia_batch.inputs.readers.jsonl",
    "synthia_batch.inputs.readers.parquet",
    "syscalls",
)


def serve() -> None:
    _warm_up()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write("ready\n")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        _, status = os.waitpid(child, 0)
        answers.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")


def _warm_up() -> None:
    # Imported, not used: pyarrow's threads start with its first use, and threads do not outlive a fork.
    for module in IMPORTS:
        importlib.import_module(module)
    _build_command_line()
    gc.freeze()


def _build_command_line() -> None:
    """Build commands and what reads their flags: anew for each run, that is a third of a small one."""
    import typer.main

    from synthia_batch.cli.app import app

    built: Any = typer.main.get_command(app)
    for command in built.commands.values():
        for parameter in command.params:
            parameter.get_runtime_param()
    typer.main.get_command = lambda _: built


def _become(request: dict[str, Any]) -> NoReturn:
    """Be `synthia-batch ARGUMENTS`, with the faults asked for."""
    import syscalls

    code = 1
    try:
        signal.alarm(PATIENCE_SECONDS)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["directory"])
        syscalls.patch(request["patch"])
        if request["boot"]:
            syscalls.patch({"synthia_batch.runner.directory.session.read_boot_id": lambda: request["boot"]})
        syscalls.install(request["root"], request["faults"])
        code = _run(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    import traceback

    from synthia_batch.cli.app import main

    sys.argv = ["synthia-batch", *arguments]
    try:
        main()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
