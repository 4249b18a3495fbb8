"""The attacks of sodef.py, and what they say of a model together.

FGSM, PGD with a random start, PGD of smaller steps with restarts, images that fool another model
(transfer), and a search without gradients (Square). Those last two tell a hidden gradient from
robustness.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
import torchattacks
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Attack


class Recorded(Attack):
    """An attack that remembers which images withstood it."""

    def __init__(self, attack: Attack) -> None:
        self.attack, self.right = attack, []
        self.eps, self.norm, self.steps = attack.eps, attack.norm, attack.steps
        self.step_size = getattr(attack, "step_size", None)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Run the attack."""
        found = self.attack(model, x, y)
        with torch.no_grad():
            self.right.append((model(x).argmax(1) == y) & (model(found).argmax(1) == y))
        return found


class Restarts(Attack):
    """An attack from several random starts, each on the images that withstood those before."""

    def __init__(self, attack: Attack, starts: int) -> None:
        self.attack, self.starts = attack, starts
        self.eps, self.norm, self.steps = attack.eps, attack.norm, attack.steps
        self.step_size = attack.step_size

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Run the attack from one start after the other."""
        found = x.clone()
        for _ in range(self.starts):
            with torch.no_grad():
                left = (model(found).argmax(1) == y).nonzero().flatten()
            if len(left):
                found[left] = self.attack(model, x[left], y[left])
        return found


class Transfer(Attack):
    """An attack on another model, whose images are then shown to the one under attack."""

    def __init__(self, source: nn.Module, attack: Attack) -> None:
        self.source, self.attack = source, attack
        self.eps, self.norm, self.steps = attack.eps, attack.norm, attack.steps
        self.step_size = attack.step_size

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Attack the source."""
        return self.attack(self.source, x, y)


class Square(Attack):
    """Square attack [Andriushchenko et al. 2020], which asks for logits and for no gradient."""

    norm, step_size = "linf", None

    def __init__(self, eps: float, queries: int) -> None:
        self.eps, self.queries, self.steps = eps, queries, 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Search at random."""
        attack = torchattacks.Square(model, "Linf", self.eps, n_queries=self.queries)
        attack.set_model_training_mode(False, False, False)
        found = attack(x, y).detach()
        return torch.minimum(torch.maximum(found, x - self.eps), x + self.eps).clamp(0, 1)


def attacks(eps: float, source: nn.Module, args: argparse.Namespace) -> dict[str, Recorded]:
    """Return the attacks of one radius."""

    def built(name: str, step_size: float, steps: int) -> Attack:
        options = {"name": name, "eps": eps, "step_size": step_size, "steps": steps}
        return stabnet.build(options, kind="attack")

    found = {
        "FGSM": built("ifgsm", eps, 1),
        "PGD": built("pgd", eps / 3, 20),
        "PGD, restarts": Restarts(built("pgd", eps / 15, args.steps), args.starts),
        "transfer": Transfer(source, built("pgd", eps / 15, args.steps)),
        "Square": Square(eps, args.queries),
    }
    return {name: Recorded(attack) for name, attack in found.items()}


def robustness(model: nn.Module, source: nn.Module, images: list, args: argparse.Namespace) -> dict:
    """Return what each attack leaves, what all together leave, and the signs of masking."""
    accuracy, results, signs = {}, [], []
    for eps in args.eps:
        tried = attacks(eps, source, args)
        report = stabnet.robustness.attack_report(
            model, images, list(tried.values()), seed=args.seed
        )
        named = zip(tried, report.results, strict=True)
        results += [replace(result, attack=name) for name, result in named]
        left = {name: torch.cat(attack.right) for name, attack in tried.items()}
        left["all"] = torch.stack(list(left.values())).all(0)
        accuracy[f"{eps:g}"] = {name: float(r.double().mean()) for name, r in left.items()}
        signs += blind(accuracy[f"{eps:g}"], left, eps)
    # As ``random_start`` they would not be held against the single step.
    audit = stabnet.robustness.masking_warnings(
        [r for r in results if r.attack == "PGD, restarts"],
        single_step=[r for r in results if r.attack == "FGSM"],
    )
    return {
        "clean": report.clean.to_dict(),
        "accuracy": accuracy,
        "results": [result.to_dict() for result in results],
        "masking": [*audit, *signs],
    }


def blind(accuracy: dict[str, float], left: dict[str, Tensor], eps: float) -> list[str]:
    """Return in words where attacks without the model's gradient find what those with it do not."""
    found = []
    withstood = left["FGSM"] & left["PGD"] & left["PGD, restarts"]
    for name in ("transfer", "Square"):
        share = float((withstood & ~left[name]).double().mean())
        if share >= 0.02:
            found.append(
                f"at eps {eps:g} {name} fools {share:.1%} of the images that withstand every "
                "attack by the model's own gradient, which therefore misleads"
            )
    if accuracy["PGD"] - accuracy["all"] >= 0.05:
        found.append(
            f"at eps {eps:g} the protocol's PGD leaves {accuracy['PGD']:.1%}, all attacks together "
            f"{accuracy['all']:.1%}: the protocol's figure is no robust accuracy"
        )
    return found
