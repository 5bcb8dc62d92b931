"""The site of docs/ builds without a broken link."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_environment

pytest.importorskip("mkdocs", reason="mkdocs is not installed: make setup installs it")


def build_site(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = make_environment(NO_MKDOCS_2_WARNING="1")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build_site(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    docs, site = ROOT / "docs", tmp_path / "site"
    for page in docs.rglob("*.md"):
        assert (site / page.relative_to(docs)).with_suffix(".html").is_file()
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert loaded == [], page


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**config, "nav": [{"Start": "index.md"}]}))
    (tmp_path / "docs").mkdir()
    for text, code in (("[here](index.md)", 0), ("[gone](gone.md)", 1), ("[gone](index.md#gone)", 1)):
        (tmp_path / "docs/index.md").write_text(f"# Start\n\n{text}\n")
        done = build_site(tmp_path, tmp_path / "site")
        assert done.returncode == code, (text, done.stderr)
