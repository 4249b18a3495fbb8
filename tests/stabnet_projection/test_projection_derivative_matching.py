"""derivative_matching: the field is fitted to derivatives, component by component."""

from __future__ import annotations

import pytest
import torch

import stabnet
from stabnet import InvalidInputError, InvalidOptionError

A = torch.tensor([[-0.3, 2.0], [-2.0, -0.5]])


def pairs(count: int, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1).to(dtype)
    return x, x @ A.to(dtype).T


def objective(**options):
    return stabnet.build("derivative_matching", kind="objective", **options)


def linear_model(in_shape=(2,)):
    """Return a model whose field is linear: an affine mlp."""
    field = {"name": "mlp", "hidden": []}
    torch.manual_seed(0)
    return stabnet.build("stable_dynamics", in_shape=in_shape, vector_field=field).double()


def set_field(model, matrix):
    with torch.no_grad():
        model.dynamics.vector_field.first.weight.copy_(matrix)
        model.dynamics.vector_field.first.bias.zero_()


def test_the_loss_is_the_mean_square_of_the_error_in_units_of_the_scale():
    model, (x, y) = linear_model(), pairs(7, 0, torch.float64)
    error = model.velocity(0.0, x).detach() - y
    loss, logs = objective()(model, x, y)
    torch.testing.assert_close(loss, error.square().mean())
    torch.testing.assert_close(logs["relative_error"], error.norm() / y.norm())
    scale = torch.tensor([2.0, 0.5])
    loss, logs = objective(scale=[2.0, 0.5])(model, x, y)
    torch.testing.assert_close(loss, (error / scale).square().mean())
    torch.testing.assert_close(logs["relative_error"], error.norm() / y.norm())
    assert not any(value.requires_grad for value in logs.values())


def test_the_true_field_has_no_loss():
    model, (x, y) = linear_model(), pairs(7, 0, torch.float64)
    set_field(model, A)
    loss, logs = objective()(model, x, y)
    assert loss < 1e-14
    assert logs["relative_error"] < 1e-6


def test_states_of_any_shape_have_flat_derivatives():
    model = linear_model((2, 3))
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    loss, _ = objective()(model, x, torch.zeros(5, 6).double())
    torch.testing.assert_close(loss, model.velocity(0.0, x).square().mean())


def test_derivatives_that_are_all_zero_leave_a_finite_relative_error():
    model, (x, y) = linear_model(), pairs(4, 0, torch.float64)
    assert objective()(model, x, 0 * y)[1]["relative_error"].isfinite()


@pytest.mark.parametrize("loss_scale", [None, (1.0, 3.0)])
def test_the_gradient_is_that_of_the_parameters(loss_scale):
    torch.manual_seed(0)
    field = {"name": "projected", "vector_field": {"name": "mlp", "hidden": [4]}}
    model = stabnet.build("stable_dynamics", vector_field=field).double()
    x, y = pairs(6, 1, torch.float64)
    parameter = model.dynamics.vector_field.vector_field.first.weight
    matching = objective(scale=loss_scale)

    def loss(weight):
        name = "dynamics.vector_field.vector_field.first.weight"

        class Wrapped(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, x, y):
                return matching(self.model, x, y)[0]

        return torch.func.functional_call(Wrapped(), {f"model.{name}": weight}, (x, y))

    assert torch.autograd.gradcheck(loss, parameter.detach().clone().requires_grad_())


def test_fit_learns_a_linear_system_and_reports_it(tmp_path):
    torch.manual_seed(0)
    data = stabnet.data.from_tensors(*pairs(400, 0), *pairs(100, 1), name="spiral")
    model = stabnet.build(
        "stable_dynamics",
        in_shape=data.in_shape,
        num_outputs=data.num_outputs,
        vector_field={
            "name": "projected",
            "vector_field": {"name": "mlp", "hidden": [16]},
            "potential": {"name": "icnn", "hidden": [8], "tangent": True},
            "alpha": 0.1,
        },
    )
    result = stabnet.training.fit(
        model,
        stabnet.data.split(data),
        objective={"name": "derivative_matching", "scale": [1.0, 1.0]},
        epochs=12,
        batch_size=50,
        learning_rate=2e-2,
        run_dir=tmp_path / "run",
        device="cpu",
        progress=False,
    )
    assert result.test["relative_error"] < 0.1
    assert "relative_error" in result.report.read_text()
    again = stabnet.training.evaluate(
        model, stabnet.data.split(data).loader("test", batch_size=100), "derivative_matching"
    )
    # A ratio of norms over each batch depends on the batches a little; the loss does not.
    assert again["relative_error"] == pytest.approx(result.test["relative_error"], rel=1e-2)
    assert again["loss"] == pytest.approx(result.test["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, 3), r"of shape \(3, 2\)"),
        (torch.zeros(3), r"of shape \(3, 2\)"),
        (torch.zeros(2, 2), r"of shape \(3, 2\)"),
        (torch.zeros(3, 4, 2), r"of shape \(3, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), "floating-point"),
    ],
)
def test_derivatives_of_another_shape_are_refused(y, message):
    with pytest.raises(InvalidInputError, match=message):
        objective()(linear_model(), torch.zeros(3, 2).double(), y)


@pytest.mark.parametrize("scale", [[1.0, 0.0], [1.0, -1.0], [], "ab", 2.0, [float("nan"), 1.0]])
def test_a_scale_that_is_not_positive_numbers_is_refused(scale):
    with pytest.raises(InvalidOptionError, match="scale"):
        objective(scale=scale)


def test_a_scale_of_another_length_is_refused():
    model, (x, y) = linear_model(), pairs(3, 0, torch.float64)
    with pytest.raises(InvalidOptionError, match="scale has 3 numbers; there are 2 components"):
        objective(scale=[1.0, 1.0, 1.0])(model, x, y)


@pytest.mark.parametrize("name", ["lyanet", "deq"])
def test_a_model_whose_inputs_are_no_states_is_refused(name):
    backbone = {"name": "linear", "width": 4}
    model = stabnet.build(
        name,
        in_shape=(2,),
        num_outputs=2,
        backbone=backbone,
        **({"vector_field": "mlp"} if name == "lyanet" else {}),
    )
    with pytest.raises(InvalidOptionError, match="inputs are the states that its flow moves"):
        objective()(model, *pairs(3, 0))


def test_a_batch_without_samples_is_refused_since_its_mean_is_none():
    with pytest.raises(InvalidInputError, match="no derivatives; a mean needs at least one"):
        objective()(linear_model(), torch.zeros(0, 2).double(), torch.zeros(0, 2).double())
