from __future__ import annotations

import pytest
import torch
from torch import nn

import stabnet
from stabnet.interfaces import Solution


def objective(name, **options):
    return stabnet.build(name, kind="objective", **options)


class _Model(nn.Module):
    """A model that reports a solve."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        raise AssertionError("the objective calls run, for the solution")

    def run(self, x):
        residual = torch.tensor([1e-6, 0.5, 1e-7, 1e-8], requires_grad=True)
        solution = Solution(
            state=x, nfe=300, residual=residual, converged=torch.tensor([True, False, True, True])
        )
        return self.layer(x), solution


X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_its_formula(smoothing):
    model = _Model().layer
    loss, logs = objective("cross_entropy", label_smoothing=smoothing)(model, X, Y)
    log_p = model(X).log_softmax(1)
    q = (1 - smoothing) * nn.functional.one_hot(Y, 3) + smoothing / 3
    torch.testing.assert_close(loss, -(q * log_p).sum(1).mean())
    assert set(logs) == {"loss", "accuracy"}
    assert logs["accuracy"] == (log_p.argmax(1) == Y).float().mean()
    loss.backward()
    assert model.weight.grad is not None


def test_mse_is_its_formula():
    model, y = _Model().layer, torch.rand(4, 3)
    loss, logs = objective("mse")(model, X, y)
    torch.testing.assert_close(loss, ((model(X) - y) ** 2).sum() / 12)
    assert set(logs) == {"loss"}


@pytest.mark.parametrize(("name", "y"), [("cross_entropy", Y), ("mse", torch.rand(4, 3))])
def test_objectives_log_detached_scalars_of_the_solution(name, y):
    loss, logs = objective(name)(_Model(), X, y)
    assert loss.requires_grad
    assert all(v.ndim == 0 and v.dtype == torch.float32 for v in logs.values())
    assert not any(v.requires_grad for v in logs.values())
    assert logs["nfe"] == 300
    assert logs["converged"] == 0.75
    assert logs["residual"] == 0.5
    assert logs["loss"] == loss


def test_a_flow_logs_evaluations_and_no_convergence():
    field = stabnet.build("mlp", kind="vector_field", state_shape=(2,), feature_shape=(2,))
    model = stabnet.StabilityModel(
        in_shape=(2,),
        num_outputs=2,
        backbone=stabnet.build("identity", kind="backbone", in_shape=(2,)),
        dynamics=stabnet.Flow(field, stabnet.build("rk4", kind="integrator", step_size=0.5)),
        head=stabnet.build("identity", kind="head", in_features=2, num_outputs=2),
    )
    _, logs = objective("cross_entropy")(model, torch.rand(4, 2), Y % 2)
    assert set(logs) == {"loss", "accuracy", "nfe"}
    assert logs["nfe"] == 8


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 1, 12, 2]), "label 12 but the model has 3 outputs"),
        (torch.tensor([0, 1, -100, 2]), "label -100 but the model has 3 outputs"),
        (torch.tensor([0, 1]), r"shape \(batch,\), here \(4,\); got \(2,\)"),
        (torch.zeros(4, 3, dtype=torch.long), r"got \(4, 3\)"),
        (torch.zeros(4), "whole numbers; got torch.float32"),
        (torch.zeros(4, dtype=torch.bool), "whole numbers; got torch.bool"),
    ],
)
def test_wrong_labels_are_refused(y, message):
    with pytest.raises(stabnet.InvalidInputError, match=message):
        objective("cross_entropy")(_Model(), X, y)


def test_labels_of_any_integer_type_are_taken():
    expected = objective("cross_entropy")(_Model(), X, Y)[0]
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(objective("cross_entropy")(_Model(), X, Y.to(dtype))[0], expected)


def test_labels_that_are_not_on_the_cpu_are_not_looked_at():
    model = nn.Linear(4, 3, device="meta")  # has no values to look at
    loss, _ = objective("cross_entropy")(model, X.to("meta"), Y.to("meta"))
    assert loss.device.type == "meta"


def test_cross_entropy_compiles_as_one_graph():
    part, model = objective("cross_entropy"), _Model().layer
    compiled = torch.compile(lambda x, y: part(model, x, y)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X, Y), part(model, X, Y)[0])


def test_logits_of_another_shape_are_refused():
    with pytest.raises(stabnet.InvalidInputError, match=r"returned \(4, 4, 1\)"):
        objective("cross_entropy")(nn.Unflatten(1, (4, 1)), X, Y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.rand(4), r"shape of the outputs, \(4, 1\); got \(4,\); use y\[:, None\]"),
        (torch.rand(4, 3), r"got \(4, 3\)$"),
        (torch.zeros(4, 1, dtype=torch.long), "floating-point numbers; got torch.int64"),
    ],
)
def test_wrong_targets_are_refused(y, message):
    with pytest.raises(stabnet.InvalidInputError, match=message):
        objective("mse")(nn.Linear(4, 1), X, y)


def test_impossible_smoothing_is_refused():
    with pytest.raises(stabnet.InvalidOptionError, match="at least 0 and below 1; got 1"):
        objective("cross_entropy", label_smoothing=1.0)


def test_objectives_name_their_task():
    assert objective("cross_entropy").task == "classification"
    assert objective("mse").task == "regression"
