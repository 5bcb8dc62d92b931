"""The commands: flags in, one call, a printed answer, an exit code.

Nothing heavy is imported until a command needs it: `--help` answers in a blink.
"""

import sys

import typer

from synthia_batch.cli.plan import plan, validate
from synthia_batch.cli.retry import retry
from synthia_batch.cli.run import run
from synthia_batch.cli.status import status
from synthia_batch.cli.verify import verify
from synthia_batch.errors import SynthiaBatchError

app = typer.Typer(
    name="synthia-batch",
    help="Turn a file of prompts into a finished dataset, overnight, on whatever GPUs are there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.command()(plan)
app.command()(validate)
app.command()(status)
app.command()(retry)
app.command()(verify)


def main() -> None:
    """Run the command line; every error of the package becomes its message and its exit code."""
    try:
        app()
    except SynthiaBatchError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        print("stopped at once; what was finished is kept, run the same command again", file=sys.stderr)
        sys.exit(130)
