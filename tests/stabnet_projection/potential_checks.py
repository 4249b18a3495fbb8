"""What is asked of every potential of the plugin, for the tests of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabnet.interfaces import Context, Potential


def states(potential: Potential, count: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random states and centers in double precision."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, count, *potential.state_shape)
    z, c = torch.randn(shape, generator=generator, dtype=torch.float64)
    return z, c


class Evaluate(nn.Module):
    """Value and gradient as the outputs of a module, for export."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.potential.value_and_gradient(z, Context(center=c))


def check_transforms(potential: Potential) -> None:
    """Value and gradient are the same in every mode, and derivatives of V are its gradient."""
    z, c = states(potential)
    evaluate = Evaluate(potential)
    value, gradient = expected = evaluate(z, c)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(z, c), expected)
    with torch.inference_mode():
        torch.testing.assert_close(evaluate(z, c), expected, check_stride=False)
    torch.testing.assert_close(torch.vmap(evaluate)(z, c), expected)

    def single(z: Tensor, c: Tensor) -> Tensor:
        return potential(z, Context(center=c))

    for derivative in (torch.func.grad, torch.func.jacrev):
        torch.testing.assert_close(torch.vmap(derivative(single))(z, c), gradient)
    hessian = torch.vmap(torch.func.jacrev(torch.func.grad(single)))(z, c)
    jacobian = torch.vmap(torch.func.jacrev(lambda z, c: evaluate(z, c)[1]))(z, c)
    torch.testing.assert_close(jacobian, hessian)
    compiled = torch.compile(lambda z, c: evaluate(z, c), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, c), expected)
    # One state without a batch, and states that samples share.
    torch.testing.assert_close(evaluate(z[0], c[0]), (value[0], gradient[0]))
    shared = evaluate(z[None, :3], c)
    for i in range(len(c)):
        one = evaluate(z[:3], c[i].expand_as(z[:3]))
        torch.testing.assert_close((shared[0][i], shared[1][i]), one)


def check_export(potential: Potential) -> None:
    """Value and gradient export."""
    z, c = states(potential)
    evaluate = Evaluate(potential)
    exported = torch.export.export(evaluate, (z, c), strict=False).module()
    torch.testing.assert_close(exported(z, c), evaluate(z, c))


def train(potential: Potential, steps: int) -> None:
    """Train a potential on an arbitrary target, so that all of its parameters move."""
    center = potential.center
    assert isinstance(center, Tensor)
    generator = torch.Generator().manual_seed(7)
    optimizer = torch.optim.Adam(potential.parameters(), lr=1e-2)
    for _ in range(steps):
        z = torch.randn(16, *potential.state_shape, generator=generator, dtype=torch.float64)
        target = z.flatten(1).sum(1).abs() + 3 * z.flatten(1)[:, 0].relu()
        loss = (potential(center + z) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def check_center(potential: Potential) -> None:
    """Value and gradient vanish at the center, whether its own or one per sample."""
    own = getattr(potential, "center", None)
    assert isinstance(own, Tensor)
    _, c = states(potential)
    for at, context in ((own[None], None), (c, Context(center=c))):
        value, gradient = potential.value_and_gradient(at, context)
        assert value.abs().max() <= 1e-12
        assert gradient.abs().max() <= 1e-12


def search_steepness(potential: Potential, steps: int = 30, pairs: int = 32) -> float:
    """Return the largest ``‖∇V(x) − ∇V(y)‖ / ‖x − y‖`` that ascending the ratio finds."""
    generator = torch.Generator().manual_seed(3)
    shape = (pairs, *potential.state_shape)
    scale = torch.logspace(-1, 1, pairs, dtype=torch.float64)[:, None]
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    gap = 1e-2 * scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    x, gap = x.requires_grad_(), gap.requires_grad_()
    optimizer = torch.optim.Adam([x, gap], lr=0.03)
    largest = 0.0
    for _ in range(steps):
        slopes = potential.value_and_gradient(torch.stack([x, x + gap]))[1]
        ratio = (slopes[1] - slopes[0]).norm(dim=-1) / gap.norm(dim=-1)
        largest = max(largest, float(ratio.detach().max()))
        optimizer.zero_grad()
        (-ratio.sum()).backward()
        optimizer.step()
    return largest
