"""The command line: parses flags, calls one operation, prints its result and sets the exit code.

Heavy imports wait until a command needs them, so that `--help` stays fast.
"""

import io
import os
import platform
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from synthia_batch.cli.commands.demo import demo
from synthia_batch.cli.commands.doctor import doctor
from synthia_batch.cli.commands.export import export
from synthia_batch.cli.commands.failed import failed
from synthia_batch.cli.commands.init import init
from synthia_batch.cli.commands.plan import plan, validate
from synthia_batch.cli.commands.presets import presets
from synthia_batch.cli.commands.preview import preview
from synthia_batch.cli.commands.push import push
from synthia_batch.cli.commands.report import report
from synthia_batch.cli.commands.retry import retry
from synthia_batch.cli.commands.run import run
from synthia_batch.cli.commands.schema import schema
from synthia_batch.cli.commands.select import select
from synthia_batch.cli.commands.status import status
from synthia_batch.cli.commands.tune import tune
from synthia_batch.cli.commands.verify import verify
from synthia_batch.cli.help import WIDTH, CommandTable, GroupedCommands
from synthia_batch.cli.process import reports_interrupts, tolerates_closed_output
from synthia_batch.cli.streams import guard_streams
from synthia_batch.core.errors import SynthiaBatchError, UsageError
from synthia_batch.core.log import show_log
from synthia_batch.core.process_title import hide_arguments
from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import mask_arguments

EXIT_BUG = 1
_RESUME = "finished samples are kept, resume with"
_RESTART = "start again with"


def main() -> None:
    """Run the command line. Errors become a message and an exit code."""
    guard_streams()
    hide_arguments(mask_arguments(sys.argv[1:]))
    try:
        with show_log():
            code = app(standalone_mode=False)
    except TyperException as exc:
        show(_describe_usage(exc), end="", file=sys.stderr)
        sys.exit(exc.exit_code)
    except SynthiaBatchError as exc:
        show(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except OSError as exc:
        if exc.filename is None:
            _report_bug()
        name = os.fsdecode(exc.filename)
        show(f"error: {name}: {exc.strerror}; check path and permissions", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    except Exception:
        _report_bug()
    sys.exit(code)


def _describe_usage(exc: TyperException) -> str:
    """Return what Typer prints about a wrong command line."""
    write = getattr(exc, "show", None)  # The base class has none.
    if write is None:
        return f"Error: {exc.format_message()}\n"
    shown = io.StringIO()
    write(file=shown)
    return shown.getvalue()


def _report_bug() -> NoReturn:
    show(
        "this is a bug in synthia-batch: please report it with the traceback below; "
        "finished samples are kept",
        file=sys.stderr,
    )
    show(traceback.format_exc(), end="", file=sys.stderr)
    sys.exit(EXIT_BUG)


def show_version(is_requested: bool) -> None:
    """Print the installed versions of this package, vLLM, Ray and Python, and exit."""
    if not is_requested:
        return
    from synthia_batch.core.hardware import installed_vllm

    vllm = " ".join(installed_vllm() or ("vllm", "not installed"))
    show(f"synthia-batch {_find_version('synthia-batch')}")
    show(f"{vllm}, ray {_find_version('ray')}, Python {platform.python_version()}")
    raise typer.Exit


def take_general_flags(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=show_version, help="Show the installed versions and exit."
        ),
    ] = False,
) -> None:
    """Turn a file of prompts into a finished dataset, overnight, on whatever GPUs you have."""


def _find_version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _list_functions() -> dict[str, Callable[..., None]]:
    """Return every command's function by name, with what it does on Ctrl-C or if its reader is gone."""
    others: list[Callable[..., None]] = [status, failed, select, export, validate, report, verify, push, tune]
    others += [presets, doctor, init, schema]
    commands = [reports_interrupts(command, _RESUME) for command in (run, demo, preview, plan, retry)]
    commands += [reports_interrupts(command, _RESTART) for command in others]
    return {command.__name__: tolerates_closed_output(command) for command in commands}


class _Commands(GroupedCommands):
    table = CommandTable(_list_functions())


app = typer.Typer(
    name="synthia-batch",
    cls=_Commands,
    context_settings={"max_content_width": WIDTH},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(take_general_flags)
