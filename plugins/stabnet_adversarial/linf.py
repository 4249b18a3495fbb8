"""I-FGSM and PGD in the l-infinity ball, run by torchattacks."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet import MissingExtraError
from stabnet.interfaces import Attack
from stabnet.robustness import (
    AttackError,
    check_images,
    check_logits,
    check_perturbation,
    eval_mode,
)

from .steps import check_radius, check_whole, paper_steps

__all__ = ["IFGSM", "PGD"]


class _Ascent(Attack):
    """Sign gradient ascent in the l-infinity ball, run by torchattacks."""

    norm: Literal["linf", "l2"] = "linf"

    def __init__(
        self, *, eps: float = 8 / 255, step_size: float = 1 / 255, steps: int | None = None
    ) -> None:
        self.eps, self.step_size, self.steps = eps, step_size, _checked(eps, step_size, steps)
        _torchattacks()

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Search for adversarial images; see :class:`stabnet.interfaces.Attack`.

        Raises:
            InvalidInputError: for images or labels that cannot be attacked.
            AttackError: if the model gives no gradient, or the result breaks the rules.

        Warns:
            RuntimeWarning: if the gradient is NaN in some image, which the step then leaves alone.
        """
        check_images(x, y)
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(model):
            x = x.detach().clone()  # a tensor made in inference mode takes part in no gradient
            labels = y.detach().clone().long()
            found: Tensor = self._torchattack(_Target(model, labels).eval())(x, labels)
        found = found.detach()
        check_perturbation(found, x, eps=self.eps, norm="linf")
        return found

    @abstractmethod
    def _torchattack(self, target: nn.Module) -> Any:
        """Return the attack of torchattacks on a model."""


@final
class IFGSM(_Ascent):
    r"""Iterated fast gradient sign method, from the image itself; known as BIM too.

    .. math:: x_{k+1} = Π(x_k + h · \mathrm{sign} ∇_x \mathrm{CE}(f(x_k), y)), \quad x_0 = x

    with Π the projection to the ball of radius ``eps`` around ``x``, within [0, 1].

    Args:
        eps: radius, in (0, 1], in pixel units.
        step_size: length ``h`` of one step, in (0, 1].
        steps: number of steps, at least 1; ``None`` for :func:`paper_steps`.

    Raises:
        InvalidOptionError: for an option out of range.
        MissingExtraError: if torchattacks is not installed.

    References:
        Kurakin et al. 2017, section 2.2; [LyaDEQ] (13), whose sign is printed for descent.
    """

    def _torchattack(self, target: nn.Module) -> Any:
        return _torchattacks().BIM(target, eps=self.eps, alpha=self.step_size, steps=self.steps)


@final
class PGD(_Ascent):
    r"""Projected gradient ascent from a random start.

    .. math:: x_{k+1} = Π(x_k + h · \mathrm{sign} ∇_x \mathrm{CE}(f(x_k), y)), \quad
        x_0 = Π_{[0, 1]}(x + U(-ε, ε))

    The start is drawn from torch's global random numbers. One start, no restarts.

    Args:
        eps: radius, in (0, 1], in pixel units.
        step_size: length ``h`` of one step, in (0, 1].
        steps: number of steps, at least 1; ``None`` for :func:`paper_steps`.

    Raises:
        InvalidOptionError: for an option out of range.
        MissingExtraError: if torchattacks is not installed.

    References:
        Madry et al. 2018, section 2.1; [LyaDEQ] (13), whose sign is printed for descent.
    """

    def _torchattack(self, target: nn.Module) -> Any:
        return _torchattacks().PGD(
            target, eps=self.eps, alpha=self.step_size, steps=self.steps, random_start=True
        )


def _checked(eps: float, step_size: float, steps: int | None) -> int:
    """Check the options and return the number of steps."""
    check_radius("eps", eps)
    check_radius("step_size", step_size)
    return paper_steps(eps) if steps is None else check_whole("steps", steps)


def _torchattacks() -> Any:
    """Import torchattacks, which only this plugin needs."""
    try:
        import torchattacks
    except ImportError as error:
        raise MissingExtraError(
            f"attacks run through torchattacks, which cannot be imported ({error}); "
            'install the extra that brings it: pip install "stabnet[attacks]"'
        ) from error
    return torchattacks


@final
class _Target(nn.Module):
    """The attacked model, in a form that torchattacks handles well.

    torchattacks takes the device of the model's first parameter, prints a warning where there is
    none, and wakes all modules of a model that was training; this one has a parameter, on the
    images' device, and is in eval mode.
    """

    def __init__(self, model: nn.Module, labels: Int[Tensor, " batch"]) -> None:
        super().__init__()
        self.device_holder = nn.Parameter(torch.empty(0, device=labels.device))
        self.model = model
        self._labels = labels

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        if x.requires_grad:
            x.register_hook(_warn_of_nan)
        logits: Tensor = self.model(x)
        check_logits(logits, self._labels)
        if not logits.requires_grad:
            raise AttackError(
                "the model's logits do not depend differentiably on the images, so a gradient "
                "attack cannot run and would call any such model robust; use an attack without "
                "gradients"
            )
        return logits


def _warn_of_nan(gradient: Float[Tensor, "batch ..."]) -> None:
    """Warn of images that a step leaves alone, since torch takes the sign of NaN to be 0."""
    count = int(gradient.isnan().flatten(1).any(1).sum())
    if count:
        warnings.warn(
            f"the model's input gradient is NaN in {count} of {len(gradient)} images; the attack "
            "makes no progress there, and they look more robust than they are",
            RuntimeWarning,
            stacklevel=2,
        )
