import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import stabnet

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """Return a script as a module, imported from its file as nothing else may import it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pendulum(monkeypatch):
    for name in ("pendulum_system", "pendulum_tables"):
        monkeypatch.setitem(sys.modules, name, load(name))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load("pendulum")
    torch.set_num_threads(threads)


def states(count, links, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, 2 * links, generator=generator, dtype=torch.float64)


def test_one_link_is_the_pendulum_of_the_textbooks():
    system, z = load("pendulum_system").Pendulum(1, damping=0.3), states(20, 1)
    theta, omega = z.unbind(1)
    expected = torch.stack([omega, -9.81 * theta.sin() - 0.3 * omega], 1)
    torch.testing.assert_close(system(0.0, z), expected)
    energy = omega.square() / 2 + 9.81 * (1 - theta.cos())
    torch.testing.assert_close(system.energy(z), energy)


def test_two_links_are_the_double_pendulum_of_the_textbooks():
    """Equal masses and lengths, in the solved form that is usually printed."""
    g, z = 9.81, states(20, 2)
    a, b, p, q = z.unbind(1)
    d = a - b
    below = 3 - (2 * d).cos()
    first = -3 * g * a.sin() - g * (a - 2 * b).sin()
    first = (first - 2 * d.sin() * (q**2 + p**2 * d.cos())) / below
    second = 2 * d.sin() * (2 * p**2 + 2 * g * a.cos() + q**2 * d.cos()) / below
    system = load("pendulum_system").Pendulum(2, damping=0.0)
    expected = torch.stack([p, q, first, second], 1)
    torch.testing.assert_close(system(0.0, z), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("links", [1, 2, 3])
def test_the_energy_changes_by_the_friction_alone(links):
    system, z = load("pendulum_system").Pendulum(links, damping=0.4), states(20, links)
    gradient, velocity = torch.func.grad(lambda z: system.energy(z).sum())(z), system(0.0, z)
    rate = (gradient * velocity).sum(1)
    loss = -0.4 * z[:, links:].square().sum(1)
    torch.testing.assert_close(rate, loss, rtol=1e-9, atol=1e-9)
    assert (system.energy(z) >= 0).all()


@pytest.mark.parametrize("links", [1, 2])
def test_simulated_energy_is_conserved_without_damping_and_falls_with_it(links):
    pendulum, z, times = load("pendulum_system").Pendulum, states(3, links) / 3, [0.0, 0.5, 1.0]
    free = pendulum(links, damping=0.0)
    energy = free.energy(free.simulate(z, times))
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), rtol=1e-8, atol=1e-8)
    damped = pendulum(links, damping=0.3)
    energy = damped.energy(damped.simulate(z, times))
    assert (energy.diff(dim=0) < 0).all()


def test_the_simulation_is_that_of_scipy():
    integrate = pytest.importorskip("scipy.integrate")
    system, z = load("pendulum_system").Pendulum(2), states(1, 2) / 3
    found = system.simulate(z, [0.0, 1.5, 3.0])[-1, 0]

    def velocity(t, z):
        return system(t, torch.as_tensor(z)[None])[0].numpy()

    expected = integrate.solve_ivp(velocity, (0, 3), z[0].numpy(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, torch.as_tensor(expected.y[:, -1]), rtol=1e-6, atol=1e-6)


def test_the_noise_is_on_the_derivatives_and_as_large_as_stated(pendulum):
    system = pendulum.Pendulum(1)
    x, y, scale = pendulum.training_data(system, 20, 0.2, seed=0)
    assert x.shape == y.shape == (20 * 31, 2)
    noise = (y.double() - system(0.0, x.double())) / scale
    assert noise.std().item() == pytest.approx(0.2, rel=0.1)


def test_a_rollout_that_is_not_finite_counts_as_diverged(pendulum):
    truth = torch.ones(9, 4, 2, dtype=torch.float64)
    found = truth.clone()
    found[5:, 0] = torch.nan
    found[3, 1] = 100.0
    row = pendulum.measure(pendulum.errors(found, truth), found, truth)
    assert row["diverged"] == 0.5
    assert row["mean 0.3-0.8 s"] == torch.inf
    assert row["worst 0-0.1 s"] == 0


def test_v_rises_along_a_rollout_that_is_not_finite(pendulum, monkeypatch):
    model = stabnet.build("stable_dynamics", in_shape=(2,)).double()
    truth = torch.ones(3, 2, 2, dtype=torch.float64)
    found = truth.clone()
    found[2, 0] = torch.nan
    monkeypatch.setattr(pendulum, "roll_out", lambda *_: truth)
    row = pendulum.compare_steps(model, truth, [0.0, 0.1, 0.2], found)
    assert row["rk4: V rises"] == 0.25
    assert row["stable_step: V rises"] == 0


def test_the_verdict_counts_the_cases_below_the_plain_field():
    tables = load("pendulum_tables")
    rows = [
        {"links": 1, "field": field, "seed": seed, "mean 0-5 s": error}
        for field, errors in (("plain", (1.0, 2.0)), ("other", (0.5, float("inf"))))
        for seed, error in enumerate(errors)
    ]
    (line,) = tables.verdict(rows)
    assert line.startswith("- other: ")
    assert "1 in 0-5 s, of 2 cases" in line


def test_it_writes_tables_and_figures(pendulum, tmp_path):
    options = ["--seeds", "0", "--trajectories", "2", "--steps", "5", "--starts", "2"]
    pendulum.main([*options, "--horizon", "3.2", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "pendulum.json").read_text())
    fields = ["plain", "projected, quadratic V", "projected, ICNN"]
    assert [(r["links"], r["field"]) for r in record["rows"]] == [
        (n, field) for n in (1, 2) for field in fields
    ]
    # The scaled steps never raise V, whatever the weights.
    assert all(row["stable_step: V rises"] == 0 for row in record["steps"])
    text = (tmp_path / "pendulum.md").read_text()
    for n in (1, 2):
        assert f"](pendulum-{n}.png)" in text
        assert (tmp_path / f"pendulum-{n}.png").read_bytes().startswith(b"\x89PNG")
