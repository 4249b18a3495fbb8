"""The oscillator's energies are what the formulas say, and the files are written."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "oscillator.py"


def test_energies_are_within_their_formulas_and_come_close_to_them(tmp_path, capsys):
    runpy.run_path(str(EXAMPLE))["main"](["--steps", "300", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "oscillator.json").read_text())
    assert record["command"] == "python examples/oscillator.py --steps 300"
    assert len(record["rows"]) == 9
    for row in record["rows"]:
        assert row["within"]
        gap = 1e-10 if row["method"] == "Euler" else 0.02
        assert row["largest"] == pytest.approx(row["largest possible"], rel=gap)
        assert row["least"] == pytest.approx(row["least possible"], rel=gap)
    text = (tmp_path / "oscillator.md").read_text()
    assert text == capsys.readouterr().out[:-1]
    assert "All energies are within their formulas" in text
    assert (tmp_path / "oscillator.png").stat().st_size > 1000


def test_energies_outside_are_reported():
    module = runpy.run_path(str(EXAMPLE))
    row = module["measure"]("leapfrog", 0.5, 3) | {"within": False}
    assert "Outside by more than 1e-9 of the formula: leapfrog at h = 0.5." in module["markdown"](
        [row], "command"
    )
