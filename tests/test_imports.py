"""Who may import whom: seven rows of packages, and the one place of each heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "synthia_batch"
ROWS = [
    {"cli"},
    {"operations"},
    {"runner"},
    {"results", "scheduler"},
    {"models", "inputs", "storage", "workers"},
    {"job"},
    {"core"},
]
"""A package imports from the rows below its own. Those of one row do not import each other."""
ONLY_IN = {
    "vllm": {"workers/vllm/"},
    "torch": {"workers/vllm/"},
    "ray": {"workers/pools/ray_"},
    "openpyxl": {"inputs/fetch/xlsx.py"},
    "pyarrow": {"inputs/readers/", "inputs/fetch/arrow.py", "storage/parts/"},
    "obstore": {"storage/remote/object_store.py", "inputs/remote/bucket.py"},
    "openai": {"workers/openai/"},
    "httpx2": {"workers/openai/"},
    "matplotlib": {"results/report/plots.py"},
    "typer": {"cli/"},
    "fsspec": {"inputs/remote/fetch.py"},
    "py3langid": {"results/quality/language.py"},
    "re2": {"inputs/records/patterns.py"},
    "rensa": {"results/select/near.py"},
    "prometheus_client": {"runner/monitoring/metrics.py"},
    "apprise": {"runner/monitoring/notify.py"},
    "jsonschema": {"job/structured_check.py", "scheduler/answer_check.py"},
    "transformers": {"models/gguf_convert.py", "models/tokenizer_file.py"},
}
COMMANDS = ["run", "plan", "preview", "status", "failed", "report", "verify"]
COMMANDS += ["tune", "presets", "doctor", "init", "push", "schema"]
HEAVY = {"jinja2", "matplotlib", "numpy", "pyarrow", "ray", "torch", "transformers", "vllm"}
HEAVY |= ONLY_IN.keys() - {"typer"}
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
PUBLIC = {"__init__.py", "__main__.py", "errors.py"}
"""The public API and the program import from everywhere."""


def list_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the package that is meant"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def package_of(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("module", sorted(MODULES.keys() - PUBLIC))
def test_a_module_imports_only_from_the_rows_below(module: str) -> None:
    own = package_of(module)
    row = next(number for number, packages in enumerate(ROWS) if own in packages)
    allowed = {own}.union(*ROWS[row + 1 :])
    imported = {
        name.split(".")[1] for name in list_imports(MODULES[module]) if name.startswith("synthia_batch.")
    }
    assert imported <= allowed


def test_the_rows_have_every_package_and_no_other() -> None:
    packages = {package_of(module) for module in MODULES.keys() - PUBLIC}
    assert packages == set().union(*ROWS)


@pytest.mark.parametrize("module", ["workers/worker.py", "workers/canary.py"])
def test_a_worker_knows_engines_by_their_contract_only(module: str) -> None:
    workers = {name.split(".")[2] for name in list_imports(MODULES[module]) if ".workers." in name}
    assert workers == {"engine"}


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_heavy_library_is_imported_in_its_one_place(library: str) -> None:
    users = [m for m, path in MODULES.items() if library in {n.split(".")[0] for n in list_imports(path)}]
    assert users, f"nothing imports {library}: the table is out of date"
    assert [user for user in users if not any(user.startswith(place) for place in ONLY_IN[library])] == []


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    # The list of commands needs no flags of a job, and so not its schema.
    unwanted = HEAVY if len(arguments) > 1 else HEAVY | {"pydantic", "synthia_batch.job.schema"}
    probe = (
        "import sys\nfrom synthia_batch.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"heavy = {unwanted} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", probe, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
