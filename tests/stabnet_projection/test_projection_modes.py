"""Projected field and stable steps in all of torch's modes: transforms, compiled, exported."""

from __future__ import annotations

import pytest
import torch
from stabnet_projection import ProjectedField, StableStep
from torch import nn

import stabnet
from stabnet.interfaces import Potential


class _Wavy(Potential):
    """A potential that is not convex, around the center that the context gives."""

    state_shape = (3,)

    def forward(self, z, context=None):
        center = context.center
        offset = z - (center.unsqueeze(-2) if z.ndim > center.ndim > 1 else center)
        return offset.square().sum(-1) + 2 * torch.sin(3 * offset[..., 0]).square()


class _Run(nn.Module):
    """A step of a field, at plain-number times."""

    def __init__(self, field, step) -> None:
        super().__init__()
        self.field, self.step = field, step

    def forward(self, t, z, u):
        """Return the last state; ``t`` is as a field takes it, and is not used."""
        return self.step(self.field, z, (0.0, 0.3), u).states[-1]


class _AtZero(nn.Module):
    """A part at time zero: export has no inputs that a program does not use."""

    def __init__(self, part) -> None:
        super().__init__()
        self.part = part

    def forward(self, z, u):
        """Return what the part does."""
        return self.part(0.0, z, u)


SCHEMES = {
    "scaled": {},
    "shortened": {"scheme": "shortened"},
    "rk4": {"integrator": {"name": "rk4", "step_size": 0.3}},
}


def _field(potential="icnn", center: str = "features") -> ProjectedField:
    torch.manual_seed(0)
    part = _Wavy() if potential == "wavy" else {"name": "icnn", "hidden": [4], "tangent": True}
    return ProjectedField((3,), (3,), {"name": "mlp", "hidden": [4]}, part, center=center).double()


def _part(name: str, potential: str = "icnn", center: str = "features") -> nn.Module:
    field = _field(potential, center)
    return field if name == "field" else _Run(field, StableStep(0.3, **SCHEMES[name])).double()


def _inputs(count: int = 5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 3, generator=generator, dtype=torch.float64)


PARTS = ["field", *SCHEMES]
KINDS = [("icnn", "features"), ("icnn", "potential"), ("wavy", "features")]
all_kinds = pytest.mark.parametrize(("potential", "center"), KINDS)
all_parts = pytest.mark.parametrize("part", PARTS)


@all_parts
@all_kinds
def test_works_without_gradients_and_in_inference_mode(part, potential, center):
    module, (z, u) = _part(part, potential, center), _inputs()
    expected = module(0.0, z, u)
    assert expected.requires_grad
    with torch.no_grad():
        assert torch.equal(module(0.0, z, u), expected)
    with torch.inference_mode():
        inside = [x.clone() for x in (z, u)]
        assert inside[0].is_inference()
        torch.testing.assert_close(module(0.0, *inside), expected)
        torch.testing.assert_close(module(0.0, z, u), expected)


@all_parts
@all_kinds
def test_single_states_under_vmap_equal_the_batch(part, potential, center):
    module, (z, u) = _part(part, potential, center), _inputs()
    mapped = torch.vmap(lambda z, u: module(0.0, z, u))(z, u)
    torch.testing.assert_close(mapped, module(0.0, z, u))


@all_parts
@all_kinds
def test_jacobians_of_torch_func_are_those_of_autograd(part, potential, center):
    module, (z, u) = _part(part, potential, center), _inputs(3)
    jacobian = torch.vmap(torch.func.jacrev(lambda z, u: module(0.0, z, u)))(z, u)
    assert jacobian.shape == (3, 3, 3)
    for i in range(3):
        plain = torch.autograd.functional.jacobian(
            lambda z, i=i: module(0.0, z[None], u[i : i + 1])[0], z[i]
        )
        torch.testing.assert_close(jacobian[i], plain)
    ahead = torch.vmap(torch.func.jacfwd(lambda z, u: module(0.0, z, u)))(z, u)
    torch.testing.assert_close(ahead, jacobian)


@all_parts
@all_kinds
def test_functional_call_and_grad_give_the_gradients_of_the_parameters(part, potential, center):
    module, (z, u) = _part(part, potential, center), _inputs()
    parameters = dict(module.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(module, parameters, (0.0, z, u)).square().sum()

    ours = torch.func.grad(loss)(parameters)
    module(0.0, z, u).square().sum().backward()
    for name, parameter in parameters.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(ours[name], expected)


@pytest.mark.parametrize(
    ("part", "potential"),
    [("field", "icnn"), ("shortened", "icnn"), ("scaled", "wavy")],
)
def test_compiles_as_one_graph_with_gradients(part, potential):
    module, (z, u) = _part(part, potential), _inputs()
    z.requires_grad_()
    compiled = torch.compile(lambda z, u: module(0.0, z, u), fullgraph=True, backend="aot_eager")
    out, expected = compiled(z, u), module(0.0, z, u)
    torch.testing.assert_close(out, expected)
    wanted = (z, *module.field.parameters()) if part != "field" else (z, *module.parameters())
    ours = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
    theirs = torch.autograd.grad(expected.square().sum(), wanted, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b)


@pytest.mark.parametrize(
    ("part", "center"),
    [
        ("field", "features"),
        ("field", "potential"),
        ("scaled", "features"),
        ("shortened", "potential"),
        ("rk4", "features"),
    ],
)
def test_exports_with_any_batch(part, center):
    module, (z, u) = _part(part, "icnn", center).eval(), _inputs()
    batch = torch.export.Dim("batch", min=2, max=100)
    shapes = {"z": {0: batch}, "u": {0: batch}}
    exported = torch.export.export(_AtZero(module), (z, u), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(z, u), module(0.0, z, u))
    z, u = _inputs(9)
    torch.testing.assert_close(exported(z, u), module(0.0, z, u))


def _model(scheme: str) -> stabnet.StabilityModel:
    torch.manual_seed(0)
    flow = stabnet.Flow(_field(), StableStep(0.5, **SCHEMES[scheme]), "learned", (0.0, 1.0))
    backbone = nn.Linear(4, 3)
    return stabnet.StabilityModel((4,), 2, backbone, flow, nn.Linear(3, 2)).double().eval()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_model_that_flows_along_the_field_works_in_all_modes(scheme):
    model, x = _model(scheme), torch.randn(5, 4, dtype=torch.float64)
    expected = model(x)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)
    jacobian = torch.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(x)
    assert jacobian.shape == (5, 2, 4)
    parameters = dict(model.named_parameters())
    out = torch.func.functional_call(model, parameters, (x,))
    torch.testing.assert_close(out, expected)
    values = [
        model.dynamics.vector_field.potential(z, _context(model, x)) for z in _states(model, x)
    ]
    assert (values[-1] < values[0]).all()


def _states(model, x):
    return model.solve(x).states


def _context(model, x):
    return model.dynamics.vector_field.context(model.features(x))


def test_a_model_that_flows_along_the_field_compiles_and_exports():
    model, x = _model("scaled"), torch.randn(5, 4, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    batch = torch.export.Dim("batch", min=2, max=100)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}}).module()
    more = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(exported(more), model(more))


@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
def test_autocast_leaves_projection_and_steps_in_full_precision(scheme):
    torch.manual_seed(0)
    field = ProjectedField((3,), (3,), "mlp", "icnn", center="features")
    z, u = torch.randn(2, 100, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        value, gradient = field.potential.value_and_gradient(z, field.context(u))
        out = field(0.0, z, u)
        end = StableStep(0.5, scheme)(field, z, (0.0, 0.5), u).states[-1]
        reached = field.potential(end, field.context(u))
    assert out.dtype == end.dtype == torch.float32
    violation = (gradient * out).sum(-1) + value
    assert (violation <= 1e-6 * (gradient.norm(dim=1) * out.norm(dim=1) + value)).all()
    assert (reached <= value).all()
