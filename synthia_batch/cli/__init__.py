"""The commands: flags in, one call, a printed answer, an exit code.

Nothing heavy is imported until a command needs it: `--help` answers in a blink.
"""

import sys
import traceback

from synthia_batch.cli.doctor import doctor
from synthia_batch.cli.export import export
from synthia_batch.cli.failed import failed
from synthia_batch.cli.help import WIDTH, App, GroupedCommands
from synthia_batch.cli.init import init
from synthia_batch.cli.interrupt import stops_at_once
from synthia_batch.cli.pipe import ends_with_its_reader
from synthia_batch.cli.plan import plan, validate
from synthia_batch.cli.presets import presets
from synthia_batch.cli.preview import preview
from synthia_batch.cli.push import push
from synthia_batch.cli.report import report
from synthia_batch.cli.retry import retry
from synthia_batch.cli.run import run
from synthia_batch.cli.schema import schema
from synthia_batch.cli.status import status
from synthia_batch.cli.tune import tune
from synthia_batch.cli.verify import verify
from synthia_batch.cli.version import take_general_flags
from synthia_batch.errors import SynthiaBatchError

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
