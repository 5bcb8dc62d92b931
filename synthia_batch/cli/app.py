"""`synthia-batch --version`: what is installed, without importing it.

The commands: flags in, one call, a printed answer, an exit code.

Nothing heavy is imported until a command needs it: `--help` answers in a blink.
"""

import platform
import sys
import traceback
from importlib import metadata
from typing import Annotated

import typer

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
from synthia_batch.cli.commands.status import status
from synthia_batch.cli.commands.tune import tune
from synthia_batch.cli.commands.verify import verify
from synthia_batch.cli.help import WIDTH, App, GroupedCommands
from synthia_batch.cli.process import ends_with_its_reader, stops_at_once
from synthia_batch.core.log import show_log
from synthia_batch.errors import SynthiaBatchError


def show_version(is_asked: bool) -> None:
    """Print the versions that decide about a run, and end, if that is asked."""
    if not is_asked:
        return
    from synthia_batch.core.hardware import installed_vllm

    vllm = " ".join(installed_vllm() or ("vllm", "not installed"))
    print(f"synthia-batch {_find_version('synthia-batch')}")
    print(f"{vllm}, ray {_find_version('ray')}, Python {platform.python_version()}")
    raise typer.Exit


def take_general_flags(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=show_version, help="Show what is installed, and exit."
        ),
    ] = False,
) -> None:
    """Turn a file of prompts into a finished dataset, overnight, on whatever GPUs are there."""


def _find_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


EXIT_BUG = 1
_RESUME = "what was finished is kept, resume with"
_BEGIN_AGAIN = "begin again with"

app = App(
    name="synthia-batch",
    cls=GroupedCommands,
    context_settings={"max_content_width": WIDTH},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(take_general_flags)
app.command()(stops_at_once(run, _RESUME))
app.command()(stops_at_once(preview, _RESUME))
app.command()(stops_at_once(plan, _RESUME))
app.command()(stops_at_once(validate, _BEGIN_AGAIN))
app.command()(stops_at_once(ends_with_its_reader(status), _BEGIN_AGAIN))
app.command()(stops_at_once(ends_with_its_reader(failed), _BEGIN_AGAIN))
app.command()(stops_at_once(report, _BEGIN_AGAIN))
app.command()(stops_at_once(retry, _RESUME))
app.command()(stops_at_once(verify, _BEGIN_AGAIN))
app.command()(stops_at_once(ends_with_its_reader(export), _BEGIN_AGAIN))
app.command()(stops_at_once(push, _BEGIN_AGAIN))
app.command()(stops_at_once(tune, _BEGIN_AGAIN))
app.command()(stops_at_once(presets, _BEGIN_AGAIN))
app.command()(stops_at_once(doctor, _BEGIN_AGAIN))
app.command()(stops_at_once(init, _BEGIN_AGAIN))
app.command()(stops_at_once(schema, _BEGIN_AGAIN))


def main() -> None:
    """Run the command line; every error becomes its message and its exit code."""
    try:
        with show_log():
            app()
    except SynthiaBatchError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except Exception:
        # Whatever is not of the package's own errors, nobody thought of.
        print(
            "this is a bug in synthia-batch: please report it with the traceback below; "
            "what was finished is kept",
            file=sys.stderr,
        )
        traceback.print_exc()
        sys.exit(EXIT_BUG)
