"""Checks of attacks, on a tiny classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from ...interfaces import Attack
from ...model import StabilityModel
from ...plugin import Entry
from .._numbers import identical
from .._outcome import require
from .._specimen import build_part
from .._stand_ins import CLASSES, IMAGE, stand_in_model

__all__ = ["check_attack_ball", "check_attack_effects"]

_ROUNDING = 1e-6


def _images() -> tuple[Tensor, Tensor]:
    """Return images with pixels on the border of [0, 1] too, and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, *IMAGE, generator=generator).mul(1.5).sub(0.25).clamp(0, 1)
    return x, torch.arange(6) % CLASSES


def check_attack_ball(entry: Entry) -> None:
    """Attacked images stay in [0, 1] and in the ball, follow the seed, and raise the loss."""
    attack: Attack = build_part(entry)
    model = stand_in_model().eval()
    x, y = _images()
    found = []
    for _ in range(2):
        torch.default_generator.manual_seed(0)
        with torch.no_grad():  # whoever evaluates a model is likely in here
            found.append(attack(model, x.clone(), y))
    adversarial = found[0]
    like = adversarial.shape == x.shape and adversarial.dtype == x.dtype
    what = f"images of shape {tuple(x.shape)} and {x.dtype}"
    require(like, entry, what, f"{tuple(adversarial.shape)} and {adversarial.dtype}")
    inside = bool(((adversarial >= 0) & (adversarial <= 1)).all())
    require(
        inside, entry, "pixels in [0, 1]", f"{adversarial.min():.6g} to {adversarial.max():.6g}"
    )
    order = torch.inf if attack.norm == "linf" else 2
    farthest = float(torch.linalg.vector_norm((adversarial - x).flatten(1), order, dim=1).max())
    what = f"{attack.norm} distances of at most eps = {attack.eps:.6g}"
    require(farthest <= attack.eps + _ROUNDING, entry, what, f"{farthest:.6g}")
    require(identical(found[:1], found[1:]), entry, "equal images from equal seeds", "others")
    before, after = _loss(model, x, y), _loss(model, adversarial, y)
    what = f"a mean loss above that of the clean images, {before:.6g}"
    require(after > before, entry, what, f"{after:.6g}")


def check_attack_effects(entry: Entry) -> None:
    """An attack leaves modes, weights, gradients and the images as they were."""
    attack: Attack = build_part(entry)
    model = stand_in_model()
    model.train()
    model.head.eval()
    model.head.requires_grad_(False)
    x, y = _images()
    original, modes = x.clone(), [m.training for m in model.modules()]
    weights = [t.clone() for t in model.state_dict().values()]
    trained = [p.requires_grad for p in model.parameters()]
    attack(model, x, y)
    kept = {
        "the images": torch.equal(x, original) and not x.requires_grad,
        "every module's mode": modes == [m.training for m in model.modules()],
        "the weights": identical(tuple(model.state_dict().values()), weights),
        "which parameters are trained": trained == [p.requires_grad for p in model.parameters()],
        "no gradients in the parameters": all(p.grad is None for p in model.parameters()),
    }
    changed = [what for what, same in kept.items() if not same]
    require(not changed, entry, "an attack to leave model and images alone", f"changed: {changed}")


@torch.no_grad()
def _loss(model: StabilityModel, x: Tensor, y: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(model(x), y))
