"""The files around the code say what is so: licence, package data, CI, Docker, pre-commit."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from synthia_batch import __version__

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_licence_is_apache_2_and_everything_says_so() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert licence.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in licence
    project = PROJECT["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE", "NOTICE"])
    assert project["authors"] == [{"name": "The synthia-batch authors"}]
    assert "The synthia-batch authors" in (ROOT / "NOTICE").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["license"], citation["version"]) == ("Apache-2.0", __version__)
    assert citation["authors"] == project["authors"]


def test_the_package_says_what_an_index_shows() -> None:
    project = PROJECT["project"]
    assert (ROOT / project["readme"]).is_file()
    assert "Operating System :: POSIX :: Linux" in project["classifiers"]
    assert not any(name.startswith("License ::") for name in project["classifiers"]), "licence says it"
    assert all((ROOT / path).exists() for path in project["urls"].values())
    assert project["keywords"] == sorted(project["keywords"])


def test_the_sdist_has_all_that_its_tests_need() -> None:
    excluded = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert excluded == {"exclude": ["/.git", "/.venv", "/outputs/*"]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_the_repository_has(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["name"] == path.stem
    assert workflow[True].keys() == {"push", "pull_request"}, "YAML 1.1 reads `on` as true"
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert step.keys() <= {"uses", "with", "run"}
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
            check_command(step.get("run", ""))


def check_command(command: str) -> None:
    """Check that every target, script and test in `command` exists."""
    for part in command.split("&&"):
        words = shlex.split(part)
        if words[:1] == ["make"]:
            assert [word for word in words[1:] if word in TARGETS], part
        inner = [word for quoted in words for word in shlex.split(quoted)]
        for word in inner:
            if word.startswith(("tools/", "tests/")):
                assert (ROOT / word).exists(), word


def test_there_is_a_workflow_for_each_thing_to_check() -> None:
    assert {path.stem for path in WORKFLOWS} == {"check", "test", "wheel", "docs"}


def test_templates_of_issues_ask_and_pull_requests_have_a_list() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    for name in ("bug.yml", "wish.yml"):
        form = yaml.safe_load((folder / name).read_text())
        assert form.keys() == {"name", "description", "labels", "body"}
        assert all(item["type"] == "textarea" and item["attributes"]["label"] for item in form["body"])
        assert len({item["id"] for item in form["body"]}) == len(form["body"])
    assert yaml.safe_load((folder / "config.yml").read_text()) == {"blank_issues_enabled": True}
    assert "- [ ]" in (ROOT / ".github/pull_request_template.md").read_text()


def test_pre_commit_runs_the_tools_of_make_check() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].removesuffix(" --force-exclude").replace(".venv/bin", "$(BIN)") in makefile


LAST = ("VOLUME", "ENTRYPOINT", "CMD")


def list_instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def test_the_dockerfile_is_in_order() -> None:
    instructions = list_instructions()
    names = [name for name, _ in instructions]
    assert names[0] == "FROM"
    assert set(names) <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", *LAST}
    assert instructions[0][1].rpartition(":")[2] != "latest"
    assert json.loads(dict(instructions)["ENTRYPOINT"]) == ["synthia-batch"]
    assert json.loads(dict(instructions)["CMD"]) == ["--help"]
    users = [value for name, value in instructions if name == "USER"]
    assert users == ["1000"], "not root"
    assert names.index("USER") < names.index("ENTRYPOINT")
    runs = [value for name, value in instructions if name == "RUN"]
    assert any("--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run for run in runs)
    check_command("&&".join(runs))


def test_the_image_leaves_out_what_is_not_in_the_repository() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "outputs/*"} <= set(ignored)


@pytest.mark.parametrize("script", sorted((ROOT / "tools").glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash_that_stops_at_errors(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE)
    assert script.stat().st_mode & 0o111


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^make ([a-z-]+)  +\S", done.stdout, re.MULTILINE)
    assert set(listed) == TARGETS


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert (len(text.splitlines()) <= 120, len(text.encode()) <= 8192) == (True, True)


def test_every_link_of_a_page_at_the_top_leads_somewhere() -> None:
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
