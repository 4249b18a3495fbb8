"""A deep Hamiltonian net learns, in memory that does not grow, beside a ResNet; files are whole."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = ["--data", "digits", "--depth", "20", "--epochs", "3", "--learning-rate", "0.01"]


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    yield runpy.run_path(str(EXAMPLES / "deep_hamiltonian.py"))
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    out = tmp_path_factory.mktemp("deep")
    example["main"]([*OPTIONS, "--monitor-every", "15", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "deep-hamiltonian.json").read_text())


def test_both_nets_learn_with_gradients_alike_at_both_ends(record):
    assert [row["net"] for row in record["rows"]] == ["Hamiltonian", "ResNet"]
    for row in record["rows"]:
        assert row["test accuracy"] > 0.85
        looks = row["monitored"]
        assert [m["step"] for m in looks] == [0, 15, 30, row["steps"]]
        assert all(len(m["gradients"]) == 11 for m in looks)
        assert all(0.1 < m["ratio"] < 10 and 0.01 < m["ratio of weights"] < 100 for m in looks)


def test_first_states_are_recomputed_up_to_rounding(record):
    ours, other = record["rows"]
    assert all(0 < m["reconstruction"] < 1e-5 for m in ours["monitored"])
    assert all(m["reconstruction"] is None for m in other["monitored"])


def test_long_steps_keep_gradients_less_alike(record):
    for row, longer in zip(record["rows"], record["long steps"], strict=True):
        assert abs(math.log(longer["ratio"])) > 2 * abs(math.log(row["monitored"][0]["ratio"]))


def test_only_the_net_that_recomputes_its_states_keeps_as_much_at_any_depth(record):
    saved = {}
    for row in (r for net in record["rows"] for r in net["memory"]):
        saved.setdefault(row["net"], []).append((row["depth"], row["saved"]))
        assert row["peak"] is None
    assert saved.keys() == {"Hamiltonian", "Hamiltonian, stored", "ResNet"}
    for name, measured in saved.items():
        (first, least), (last, most) = measured[0], measured[-1]
        assert (first, last) == (1, 20)
        assert (most == least) if name == "Hamiltonian" else (most > 5 * least)


def test_nets_have_about_equally_many_parameters(record):
    ours, other = (row["parameters"] for row in record["rows"])
    assert ours == pytest.approx(other, rel=0.05)


def test_files_are_whole_and_nets_are_not_trained_twice(example, folder, capsys):
    text = (folder / "deep-hamiltonian.md").read_text()
    assert f"`python examples/deep_hamiltonian.py {' '.join(OPTIONS)} --monitor-every 15`" in text
    assert (folder / "deep-hamiltonian.png").stat().st_size > 10_000
    example["main"]([*OPTIONS, "--monitor-every", "15", "--out", str(folder)])
    assert capsys.readouterr().out[:-1] == text


def test_a_net_that_misses_what_is_asked_is_said_to(example, record):
    markdown = example["markdown"]
    ours, other = record["rows"]
    ours = ours | {"test accuracy": 0.96, "CPU seconds": 60.0}
    looks = [m | {"ratio": 1e-3} for m in ours["monitored"]]
    options = record["options"] | {"data": "mnist", "depth": 1000}
    text = markdown(record | {"options": options, "rows": [ours | {"monitored": looks}, other]})
    assert "test accuracy of 97% or more: **no**" in text
    assert "within 20 CPU minutes: yes" in text
    assert "gradients within a factor of 100: **no**" in text
