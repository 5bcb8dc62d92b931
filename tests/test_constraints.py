"""constraints-hashes.txt is constraints.txt with hashes."""

import re

from conftest import ROOT

PIN = re.compile(r"^[A-Za-z0-9._-]+==[^\s\\;]+", re.MULTILINE)


def test_every_pin_has_hashes() -> None:
    pins = set(PIN.findall((ROOT / "constraints.txt").read_text()))
    hashed = (ROOT / "constraints-hashes.txt").read_text()
    assert set(PIN.findall(hashed)) == pins, "run tools/hash_constraints.sh"
    entries = re.split(r"\n(?=\S)", hashed.partition("\n")[2])
    assert len(entries) == len(pins)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_setup_installs_with_hashes() -> None:
    script = (ROOT / "tools/setup.sh").read_text()
    assert "options+=(--constraints constraints-hashes.txt)" in script
    assert "pip install --quiet --disable-pip-version-check --require-hashes" in script
