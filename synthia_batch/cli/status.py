"""`synthia-batch status`: how far a run is."""

import json
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.cli.place import Place, is_url

if TYPE_CHECKING:
    from synthia_batch.results.read.status import RunStatus

LOOK_SECONDS = 2.0
"""Between two looks of --watch: as often as a run writes down how far it is."""


def status(
    directory: Place,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, one line per look.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look every 2 s until the run ends; Ctrl-C leaves with 0.")
    ] = False,
) -> None:
    """Show how far a run is. Only reads, from any terminal, also while the run goes on.

    Of a run in a store, what is there of it, once. With --watch a terminal shows a page that is drawn again
    and again, anything else gets a line per look.
    """
    if is_url(directory):
        _print_remote(directory, as_json)
        return
    from synthia_batch.results.read.status import StatusReader

    reader = StatusReader(Path(directory))
    found = reader.read()
    page = _Page()
    if watch and found.is_going_on:
        try:
            while found.is_going_on:
                _show_look(found, page, as_json)
                time.sleep(LOOK_SECONDS)
                found = reader.read()
        except KeyboardInterrupt:
            # The run goes on: whoever watched it has seen enough.
            page.leave()
            raise typer.Exit(0) from None
    page.clear()
    _print(found, as_json)


def _print_remote(url: str, as_json: bool) -> None:
    from synthia_batch.storage.remote.download import read_remote_status

    found = read_remote_status(url)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    ended = found.finished + found.failed
    print(f"{found.name}  {found.state}  {found.url}")
    print(f"samples   {ended} of {found.samples} are there: {found.finished} finished, {found.failed} failed")
    print(f"shards    {found.shards_published} of {found.shards}")
    if found.owner is not None:
        print(f"writer    {found.owner.describe(found.url)}")


def _show_look(found: "RunStatus", page: "_Page", as_json: bool) -> None:
    if as_json:
        _print(found, as_json)
        return
    from synthia_batch.results.report.status_text import describe_briefly, describe_status

    if sys.stdout.isatty():
        page.draw(describe_status(found))
    else:
        time_of_day = datetime.now().strftime("%H:%M:%S")
        print(f"{time_of_day} {describe_briefly(found)}", flush=True)


def _print(found: "RunStatus", as_json: bool) -> None:
    from synthia_batch.results.report.status_text import describe_status

    text = json.dumps(found.to_dict(), ensure_ascii=False) if as_json else "\n".join(describe_status(found))
    print(text, flush=True)


class _Page:
    """Lines on a terminal that replace each other in place."""

    def __init__(self) -> None:
        self._lines = 0

    def draw(self, lines: list[str]) -> None:
        """Show `lines` in place of those that are there, cut to the terminal's width and height."""
        size = shutil.get_terminal_size()
        # A line that wraps, or a page that scrolls, could not be found again to be replaced.
        shown = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
        self.clear()
        sys.stdout.write("".join(f"{line}\n" for line in shown))
        sys.stdout.flush()
        self._lines = len(shown)

    def clear(self) -> None:
        """Take the page away; what is printed next takes its place."""
        if self._lines:
            sys.stdout.write(f"\x1b[{self._lines}F\x1b[J")
            self._lines = 0

    def leave(self) -> None:
        """Leave the page as it stands."""
        if self._lines:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
