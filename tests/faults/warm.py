"""A process that has imported everything and opened nothing, and forks a `synthia-batch` on request.

Starting Python and importing pyarrow costs a second; a fork costs a hundredth of one. So a test can
kill thousands of real processes in minutes, and others need not wait for imports. Requests come as
lines of JSON on stdin; one answer each, the request's number and the exit code, goes to stdout.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any

READ_THE_ENVIRONMENT = {"huggingface_hub", "matplotlib", "ray", "torch", "transformers", "vllm"}
"""As they are imported: they are left to those that are forked."""
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


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; in a forked process, return what that is to become."""
    _warm_up()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write("ready\n")
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            return request
        _, status = os.waitpid(child, 0)
        answers.write(json.dumps([request["number"], os.waitstatus_to_exitcode(status)]) + "\n")
    return None


def _warm_up() -> None:
    # Imported, not used: pyarrow's threads start with its first use, and threads do not outlive a fork.
    for module in (*IMPORTS, *sys.argv[1:]):
        importlib.import_module(module)
    _build_command_line()
    if early := READ_THE_ENVIRONMENT & sys.modules.keys():
        raise ImportError(f"imported too early: {early}")
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


def become(request: dict[str, Any]) -> None:
    """Be `synthia-batch ARGUMENTS`, in the environment of a user or with the faults asked for."""
    signal.alarm(request["seconds"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["directory"])
    if request["environment"] is None:
        _become_faulty(request)
    os.environ.clear()
    os.environ.update(request["environment"])
    # As `python -m synthia_batch` has them. What ends the interpreter is the interpreter's own.
    sys.path[0] = os.getcwd()
    sys.argv = ["synthia-batch", *request["arguments"]]
    runpy.run_module("synthia_batch", run_name="__main__", alter_sys=True)


def _become_faulty(request: dict[str, Any]) -> None:
    import syscalls

    code = 1
    try:
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
    _request = serve()
    if _request is not None:
        become(_request)
