"""Certified bounds of operator norms: what they cost beside power iteration, and how tight."""

from __future__ import annotations

import math
from typing import Any

import torch
from measuring import Run, medians
from stabnet_gradient_flow import NormEstimate, Operator, operator
from torch import Tensor

POWER_ITERATIONS = 100
LANCZOS_STEPS = 100
EXPLICIT = 1568  # entries of a state up to which an operator's matrix is decomposed


def geometries(quick: bool) -> list[Operator]:
    """Return the operators whose norms are bounded."""
    if quick:
        return [operator((8,)), operator((2, 5, 5)), operator((2, 5, 5), padding_mode="circular")]
    dense = [operator((n,)) for n in (64, 256, 1024)]
    return dense + [
        operator((channels, size, size), padding_mode=padding)
        for padding in ("zeros", "circular")
        for channels in (16, 32, 64, 128)
        for size in (7, 14, 28)
    ]


def lanczos(geometry: Operator, weight: Tensor, steps: int) -> float:
    """Return a lower bound of the norm: that of the operator on a Krylov space, in float64.

    The space contains what as many steps of power iteration reach, and much that is better.
    """
    n = math.prod(geometry.state_shape)
    basis = torch.zeros(min(steps, n), n, dtype=torch.float64)
    new = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    largest, count = 0.0, 0
    while count < len(basis) and new.norm() > 1e-10 * largest:
        basis[count] = new / new.norm()
        count += 1
        new = geometry.adjoint(weight, geometry(weight, state(geometry, basis[count - 1])))
        new = new.flatten()
        largest = float(new.norm())
        for _ in range(2):  # once leaves rounding in it
            new = new - (basis[:count] @ new) @ basis[:count]
    images = torch.cat([geometry(weight, state(geometry, z)) for z in basis[:count]])
    return float(torch.linalg.matrix_norm(images.flatten(1), 2))


def state(geometry: Operator, z: Tensor) -> Tensor:
    """Return a vector as a batch of one state."""
    return z.view(1, *geometry.state_shape)


def norm_of(geometry: Operator, weight: Tensor) -> tuple[float, str]:
    """Return the norm of an operator in float64, by other means than the bound's, and by which."""
    n = math.prod(geometry.state_shape)
    if n <= EXPLICIT:
        columns = geometry(weight, torch.eye(n).double().view(n, *geometry.state_shape))
        return float(torch.linalg.matrix_norm(columns.flatten(1), 2)), "SVD"
    if getattr(geometry, "padding_mode", None) == "circular":
        spectrum = torch.fft.fft2(weight, s=geometry.state_shape[1:]).permute(2, 3, 0, 1)
        return float(torch.linalg.matrix_norm(spectrum, 2).max()), "SVD per frequency"
    return lanczos(geometry, weight, LANCZOS_STEPS), "Lanczos"


@torch.no_grad()
def measure_norm(geometry: Operator, rounds: int) -> dict[str, Any]:
    """Return cost and slack of the certified bound of one operator, and of power iteration."""
    torch.manual_seed(0)
    weight = geometry.initial_weight()
    estimate = NormEstimate(geometry, weight)
    start = torch.randn_like(estimate.vector)

    def iterate() -> Tensor:
        estimate.vector.copy_(start / start.norm())
        return estimate.update(weight, POWER_ITERATIONS)

    runs: dict[str, Run] = {"bound": lambda: geometry.norm_bound(weight), "power": iterate}
    seconds = medians(runs, torch.device("cpu"), rounds)
    norm, found_by = norm_of(geometry, weight.double())
    return {
        "state": geometry.state_shape,
        "padding": getattr(geometry, "padding_mode", None),
        "seconds": seconds,
        "norm": norm,
        "found_by": found_by,
        "slack": geometry.norm_bound(weight) / norm - 1,
        "shortfall": 1 - float(iterate()) / norm,
    }
