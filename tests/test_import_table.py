"""Who may import whom. The table stands in ARCHITECTURE.md; this is the check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "synthia_batch"
MAY_IMPORT = {
    "rows": set(),
    "errors": set(),
    "user_cache": set(),
    "kept_directory": set(),
    "intake": {"digest", "errors", "kept_directory", "privacy", "rows", "source", "user_cache"},
    "privacy": set(),
    "digest": {"errors", "user_cache"},
    "hardware": set(),
    "words": set(),
    "command_line": {"job"},
    "standing": set(),
    "display": {"standing", "words"},
    "drain": set(),
    "deadline": {"drain", "job", "words"},
    "tally": {"rows"},
    "recorder": {"rows"},
    "pace": set(),
    "telling": {"rows", "tally", "words"},
    "places": {"source", "rows", "errors"},
    "losses": {"pool"},
    "staff": {"dispatch", "losses", "pool", "recorder", "supervise", "errors"},
    "metrics": {"standing", "errors"},
    "notify": {"job", "errors"},
    "failures": {"intake", "job_file", "report", "source", "store", "rows", "errors"},
    "accompany": {
        "command_line",
        "display",
        "result",
        "job",
        "metrics",
        "notify",
        "report",
        "words",
        "errors",
    },
    "job": {"rows", "errors", "digest"},
    "prompts": {"rows", "errors", "digest"},
    "source": {"job", "structure", "rows", "errors", "digest"},
    "structure": {"tally", "rows", "errors"},
    "store": {"rows", "tally", "errors"},
    "remote": {"job", "plan", "store", "rows", "errors"},
    "models": {"errors", "digest", "kept_directory", "privacy", "user_cache"},
    "plan": {"job", "rows", "errors"},
    "dispatch": {"prefixes", "suspects", "rows"},
    "prefixes": {"rows"},
    "suspects": {"rows"},
    "supervise": set(),
    "progress": {"rows", "standing", "supervise", "tally"},
    "engine": {"job", "rows", "errors", "hardware", "privacy"},
    "canary": {"engine", "rows", "errors"},
    "worker": {"engine", "rows", "errors"},
    "pool": {"canary", "worker", "engine", "job", "rows", "errors", "hardware", "privacy"},
    "quality": {"job", "rows", "errors"},
    "report": {"quality", "verify", "store", "plan", "job", "drain", "tally", "words", "rows", "errors"},
    "carding": {"job", "models", "opening", "report", "store"},
    "model_choice": {"job", "models", "digest", "errors", "hardware"},
    "resolve": {
        "structure",
        "rows",
        "intake",
        "model_choice",
        "job",
        "prompts",
        "quality",
        "source",
        "engine",
        "digest",
        "errors",
        "hardware",
        "tuned",
    },
    "fit": {"engine", "job"},
    "doctor": {
        "fit",
        "intake",
        "footprint",
        "model_choice",
        "models",
        "resolve",
        "pool",
        "source",
        "job",
        "errors",
        "hardware",
        "user_cache",
    },
    "tuned": {"digest", "job", "user_cache"},
    "search": {"engine", "job"},
    "aside": {
        "canary",
        "conversations",
        "dispatch",
        "display",
        "drain",
        "drive",
        "job",
        "pool",
        "recorder",
        "rows",
        "starting",
    },
    "tune": {
        "search",
        "tuned",
        "opening",
        "resolve",
        "aside",
        "drain",
        "plan",
        "source",
        "job",
        "rows",
        "errors",
    },
    "rerun": {
        "aside",
        "canary_record",
        "kept_job",
        "conversations",
        "opening",
        "pool",
        "resolve",
        "search",
        "display",
        "drain",
        "job",
        "rows",
        "errors",
    },
    "kept_job": {"job", "job_file", "opening", "remote", "resolve", "store", "errors"},
    "draft": {"intake", "job", "source", "errors"},
    "push": {"store", "errors"},
    "footprint": set(),
    "forecast": {
        "footprint",
        "opening",
        "prompts",
        "resolve",
        "job",
        "source",
        "plan",
        "rows",
        "errors",
    },
    "starting": {"pool", "errors"},
    "picks": {"job", "rows"},
    "portion": {"keeper", "picks", "store", "rows"},
    "estimate": {"rows", "tally"},
    "meter": {"recorder", "estimate", "rows"},
    "early": {"command_line", "display", "drain", "job", "opening", "picks", "rows", "run", "store"},
    "preview": {
        "conversations",
        "early",
        "engine",
        "opening",
        "picks",
        "plan",
        "prompts",
        "resolve",
        "source",
        "display",
        "drain",
        "job",
        "rows",
        "errors",
    },
    "probe": {
        "early",
        "estimate",
        "meter",
        "opening",
        "picks",
        "plan",
        "store",
        "display",
        "drain",
        "job",
        "rows",
    },
    "drive": {
        "pool",
        "starting",
        "staff",
        "pace",
        "recorder",
        "standing",
        "conversations",
        "dispatch",
        "progress",
        "supervise",
        "suspects",
        "display",
        "drain",
        "words",
        "rows",
    },
    "conversations": {"prompts", "plan", "job", "resolve", "structure", "rows", "tally", "errors"},
    "assemble": {"quality", "store", "source", "plan", "job", "rows"},
    "keeper": {"assemble", "store", "tally", "rows", "errors"},
    "canary_record": {"canary", "pool", "prompts", "store", "rows", "errors"},
    "job_file": {"job", "models", "store", "errors"},
    "reopening": {"store", "tally", "rows"},
    "opening": {
        "assemble",
        "job_file",
        "keeper",
        "quality",
        "remote",
        "reopening",
        "store",
        "source",
        "plan",
        "resolve",
        "rows",
        "job",
        "errors",
    },
    "verify": {"store", "plan", "source", "rows", "errors"},
    "retry": {
        "run",
        "making",
        "result",
        "keeper",
        "kept_job",
        "opening",
        "reopening",
        "accompany",
        "deadline",
        "display",
        "job",
        "store",
        "errors",
    },
    "result": {"drain"},
    "making": {
        "canary_record",
        "conversations",
        "dispatch",
        "drive",
        "meter",
        "opening",
        "picks",
        "places",
        "pool",
        "portion",
        "resolve",
        "starting",
        "telling",
        "display",
        "drain",
        "job",
        "store",
        "rows",
        "errors",
    },
    "run": {
        "accompany",
        "carding",
        "making",
        "result",
        "keeper",
        "opening",
        "picks",
        "remote",
        "report",
        "resolve",
        "command_line",
        "deadline",
        "display",
        "job",
        "store",
    },
    "readback": {"failures", "job", "job_file", "report", "store", "verify", "rows", "tally", "errors"},
    "export": {"failures", "readback", "store", "rows", "errors"},
    "cli": {
        "export",
        "intake",
        "privacy",
        "push",
        "readback",
        "remote",
        "run",
        "result",
        "retry",
        "reopening",
        "rerun",
        "verify",
        "report",
        "job",
        "store",
        "errors",
        "resolve",
        "command_line",
        "failures",
        "telling",
        "forecast",
        "display",
        "doctor",
        "tune",
        "draft",
        "footprint",
        "hardware",
        "preview",
        "probe",
        "estimate",
        "rows",
        "words",
    },
    "__init__": {"errors", "failures", "job", "readback", "result", "run"},
    "__main__": {"cli"},
}
ONLY_IN = {
    "vllm": {"engine/vllm_"},
    "torch": {"engine/vllm_"},
    "ray": {"pool/ray_"},
    "pyarrow": {
        "intake/arrow_files.py",
        "source/parquet.py",
        "source/parquet_types.py",
        "store/part.py",
        "store/part_columns.py",
        "store/part_logprobs.py",
        "store/part_pages.py",
        "store/part_rows.py",
        "store/row_digest.py",
    },
    "fsspec": {"intake/patterns.py"},
    "typer": {"cli"},
    "obstore": {"intake/bucket.py", "remote/object_store.py"},
    "openai": {"engine/openai_"},
    "py3langid": {"quality/language.py"},
    "httpx2": {"engine/openai_"},
    "matplotlib": {"report/plots.py"},
    "prometheus_client": {"metrics.py"},
    "apprise": {"notify.py"},
    "jsonschema": {"structure/"},
    "transformers": {"models/gguf_convert.py", "models/tokenizer_file.py"},
}


def list_modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def list_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the package that is meant"
            names.add(node.module or "")
            if node.module == "synthia_batch":
                names.update(f"synthia_batch.{alias.name}" for alias in node.names)
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", list_modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_table_allows(path: Path) -> None:
    room = room_of(path)
    imported = {name.split(".")[1] for name in list_imports(path) if name.startswith("synthia_batch.")}
    assert imported - {room} <= MAY_IMPORT[room], f"{path} imports {imported - {room} - MAY_IMPORT[room]}"


def test_the_table_has_every_room_and_no_other() -> None:
    assert {room_of(path) for path in list_modules()} == set(MAY_IMPORT)


def test_a_worker_knows_engines_by_their_contract_only() -> None:
    for module in ("worker.py", "canary.py"):
        engines = {
            name for name in list_imports(PACKAGE / module) if name.startswith("synthia_batch.workers")
        }
        assert engines == {"synthia_batch.workers.engine"}


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_heavy_library_is_imported_in_its_one_place(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in list_modules()
        if any(name.split(".")[0] == library for name in list_imports(path))
    }
    assert users, f"nothing imports {library}: the table is out of date"
    assert all(any(user.startswith(place) for place in ONLY_IN[library]) for user in users), users


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *(
            [command, "--help"]
            for command in (
                "run",
                "plan",
                "preview",
                "status",
                "failed",
                "report",
                "verify",
                "tune",
                "presets",
                "doctor",
                "init",
                "push",
                "schema",
            )
        ),
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    probe = (
        "import sys; sys.argv = ['synthia-batch', *sys.argv[1:]]\n"
        "from synthia_batch.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'vllm', 'torch', 'ray', 'transformers', 'pyarrow', 'numpy', 'matplotlib', 'jinja2'}\n"
        "heavy |= {'apprise', 'prometheus_client', 'jsonschema', 'obstore', 'openai', 'httpx2'}\n"
        "heavy |= {'py3langid'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
