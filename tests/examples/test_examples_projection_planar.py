"""The examples of the plane run, and what they say of stable fields is so."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import stabnet

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """Return a script as a module, imported from its file as nothing else may import it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(name, out, *options):
    """Run a script, and return its record; its figure and the command must be in its text."""
    script, stem = load(name), name.replace("_", "-")
    script.main([*options, "--out", str(out)])
    text = (out / f"{stem}.md").read_text()
    assert f"Made with `python examples/{name}.py {' '.join(options)}`" in text.splitlines()[2]
    assert f"]({stem}.png)" in text
    assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    return script, json.loads((out / f"{stem}.json").read_text())


def slope_of(height, x):
    return torch.func.grad(lambda x: height(x).sum())(x)


# A nonlinear system.


def test_the_planar_system_descends_its_potential_at_the_rate_that_is_asked_of_projected():
    script = load("planar_system")
    x = script.grid(60, 50.0)
    rate = (slope_of(script.height, x) * script.system(x)).sum(1)
    assert (rate <= -script.FIELDS["projected"]["alpha"] * script.height(x)).all()
    hessian = torch.func.vmap(torch.func.jacrev(torch.func.grad(script.height)))(x)
    assert (torch.linalg.eigvalsh(hessian) > 0).all()


def test_planar_fields_descend_everywhere_and_none_beats_the_bound_of_its_kind(tmp_path):
    options = ("--epochs", "3", "--train", "300", "--starts", "3", "--time", "2.0")
    script, record = run("planar_system", tmp_path, *options)
    rows = {row["field"]: row for row in record["rows"]}
    assert list(rows) == list(script.FIELDS)
    for name in ("projected", "negative_definite", "negative_gradient"):
        assert rows[name]["error inside"] >= 0.999 * rows[name]["at least"] > 0
        assert rows[name]["own V rises"] == 0
    assert rows["negative_gradient"]["at least"] > 0.8 > rows["projected"]["error inside"]
    assert rows["mlp"]["own V rises"] is None


def test_the_bound_of_gradients_is_zero_for_a_gradient_and_all_of_a_rotation():
    script = load("planar_system")
    field = stabnet.build("negative_gradient", kind="vector_field", state_shape=(2,)).double()
    x = script.grid(80, script.REACH)
    script.system = lambda x: -(x**3) + x.flip(-1)  # the gradient of x1 x2 - (x1^4 + x2^4)/4
    assert script.least_error(field, x) < 1e-3 * script.rms(script.system(x))
    a, b = (script.REACH**2 - x**2).unbind(1)
    # Along level sets of psi = a b, which vanishes on the border.
    turning = torch.stack([-2 * x[:, 1] * a, 2 * x[:, 0] * b], 1)
    script.system = lambda x: turning
    assert script.least_error(field, x) == pytest.approx(script.rms(turning), rel=1e-9)


def test_a_trajectory_that_is_not_finite_has_not_returned(tmp_path):
    script = load("planar_system")

    class Model:
        dynamics = torch.nn.Module()

        def velocity(self, t, x):
            return -x

        def solve(self, x, times):
            ends = torch.zeros_like(x)
            ends[0] = torch.nan
            return type("Solution", (), {"state": ends})

    Model.dynamics.vector_field = torch.nn.Module()
    row = script.measure(Model(), type("Options", (), {"starts": 2, "time": 1.0}))
    assert row["not returned"] == 0.25
    assert row["farthest end"] == math.inf


def test_the_planar_text_says_what_the_numbers_say():
    script = load("planar_system")
    names = ("error inside", "error outside", "not returned", "farthest end")
    rows = [
        {"field": name, "seed": seed, **dict.fromkeys(names, 0.1 * (1 + k))}
        for seed in "01"
        for k, name in enumerate(script.FIELDS)
    ]
    first, *_, last = script.verdict(rows)
    assert "below the `mlp` for 2 of 2 seeds" in first
    assert "below" not in last
    for row in rows:
        row["error inside"] = 1 - row["error inside"]
    assert "below the `mlp` for 0 of 2 seeds" in script.verdict(rows)[0]


# Linear systems.


def test_linear_systems_are_recovered_or_come_close_to_the_nearest_matrix(tmp_path):
    script, record = run("linear_systems", tmp_path, "--epochs", "30")
    rows = {row["system"]: row for row in record["rows"]}
    assert list(rows) == list(script.SYSTEMS)
    stable, focus, saddle, center = rows.values()
    assert stable["distance"] < 1e-5
    assert stable["least possible"] == pytest.approx(0, abs=1e-6)
    for row in rows.values():
        assert max(real for real, _ in row["learned"]) <= -0.01 + 1e-9
        assert row["distance"] >= row["least possible"] - 1e-6
    for row in (focus, saddle):
        assert max(real for real, _ in row["eigenvalues"]) > 0.1
        assert row["distance"] <= 1.02 * row["least possible"]
    assert center["distance"] < 0.05
    expected = math.sqrt(2) * 0.21  # half the trace of A + rate I, twice on the diagonal
    assert focus["least possible"] == pytest.approx(expected, rel=1e-6)


def test_the_nearest_matrix_is_stable_and_none_of_many_stable_ones_is_nearer():
    script = load("linear_systems")
    generator = torch.Generator().manual_seed(0)
    for rows in script.SYSTEMS.values():
        A = torch.tensor(rows, dtype=torch.float64)
        best = script.nearest(A, 0.01)
        assert torch.linalg.eigvals(best).real.max() <= -0.01 + 1e-6
        distance = (best - A).norm()
        others = A + (distance + 0.02) * torch.randn(
            20_000, 2, 2, generator=generator, dtype=torch.float64
        )
        B = others + 0.01 * torch.eye(2, dtype=torch.float64)
        stable = (B.diagonal(dim1=1, dim2=2).sum(1) <= 0) & (torch.linalg.det(B) >= 0)
        found = (others[stable] - A).norm(dim=(1, 2)).min()
        assert distance <= found <= 1.5 * distance + 0.02


def test_the_linear_text_says_what_the_numbers_say():
    script = load("linear_systems")
    row = {"system": "a", "least possible": 0.0, "distance": 0.5, "relative error": 0.25}
    assert "of that kind; the distance is 2.5e-01" in script.verdict(row)
    row["least possible"] = 0.25
    assert "not of that kind; the distance is 2.0000 times the least" in script.verdict(row)


# Two equilibria.


def test_near_the_second_equilibrium_no_fit_beats_its_bounds_and_on_the_region_one_does_well(
    tmp_path,
):
    options = ("--epochs", "60", "--side", "60")
    _, record = run("two_equilibria", tmp_path, *options)
    for row in record["rows"]:
        assert row["error at the saddle"] >= 0.999 * row["at the saddle, at least (this V)"] > 0
        assert row["largest on the circle"] >= record["unavoidable"]["error"] > 0.1
        for where in ("in the region", "outside"):
            least = "at least (this V)" if "in" in where else "outside, at least (this V)"
            assert row[f"error {where}"] >= 0.999 * row[least]
    window, region = record["rows"]
    assert (window["fitted to"], region["fitted to"]) == ("window", "region")
    assert region["error in the region"] < 0.1 < 0.3 < window["error outside"]
    assert region["V falls in the region"] > 0.95
    assert [g["status"] for g in record["guarantees"]] == ["sampled", "sampled"]


def test_states_of_the_certified_set_go_to_the_origin_along_the_system():
    script = load("two_equilibria")
    # Half the Lyapunov form of the linearization: it falls up to some level, and not beyond.
    P = torch.tensor([[0.75, 0.25], [0.25, 0.5]], dtype=torch.float64)

    def potential(x):
        return ((x @ P) * x).sum(-1)

    x = script.window(200)
    falls = (2 * (x @ P) * script.system(x)).sum(1) < 0
    level, guarantee = script.certificate(potential, x, potential(x), falls)
    assert guarantee.status == "sampled"
    starts = x[potential(x) < level]
    assert len(starts) > 500
    assert script.inside(starts, 2 * script.BRIM).double().mean() > 0.5
    rk4 = stabnet.build("rk4", kind="integrator", step_size=0.05)
    ends = rk4(lambda t, z, u: script.system(z), starts, (0.0, 30.0)).states[-1]
    assert ends.norm(dim=1).max() < 1e-3


def test_states_of_the_region_go_to_the_origin_and_some_of_the_window_run_away():
    script = load("two_equilibria")
    starts = script.sample(200, 0, region=True).double()
    assert len(starts) == 200
    assert script.inside(starts, script.REGION).all()
    rk4 = stabnet.build("rk4", kind="integrator", step_size=0.05)
    ends = rk4(lambda t, z, u: script.system(z), starts, (0.0, 30.0)).states[-1]
    assert ends.norm(dim=1).max() < 1e-3
    away = torch.tensor([[1.1, 0.1]], dtype=torch.float64)
    assert rk4(lambda t, z, u: script.system(z), away, (0.0, 3.0)).states[-1].norm() > 2


def test_the_unavoidable_error_is_below_the_field_on_its_circle_by_a_margin_alone():
    script = load("two_equilibria")
    radius, least = script.unavoidable()
    on_circle = script.system(script.SADDLE + radius * script.directions(10_007)).norm(dim=1)
    assert 0 < on_circle.min() - least < 2e-3


def test_a_potential_that_falls_nowhere_is_evidence_of_nothing():
    script = load("two_equilibria")

    def potential(x):
        return x.square().sum(-1)

    x = script.window(50)
    nowhere = torch.zeros(len(x), dtype=torch.bool)
    level, guarantee = script.certificate(potential, x, potential(x), nowhere)
    assert guarantee is None
    assert level == potential(x).min()
    rows = [{"fitted to": where, "error outside": 1.0, "error in the region": 2.0,
             "outside, at least (this V)": 0.5} for where in ("window", "region")]  # fmt: skip
    assert script.reading(rows, [None, None])[-1].startswith("- fitted to the region: no such set")
