"""The table of docs/reference/inputs.md is the one that the shapes give."""

import runpy

from conftest import ROOT


def test_the_table_of_shapes_is_up_to_date() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "shapes_table.py"))
    text = (ROOT / "docs" / "reference" / "inputs.md").read_text()
    assert tool["replace_table"](text) == text, "run: python tools/shapes_table.py"
    assert "| `alpaca` | `instruction` with one of" in text
