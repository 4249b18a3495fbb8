"""The search in a ball: runs from random starts, of which the best point is kept."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stabnet import InvalidInputError
from stabnet.interfaces import Attack
from stabnet.robustness import (
    AttackError,
    check_images,
    check_logits,
    check_perturbation,
    eval_mode,
)

from .balls import Ball, ball
from .losses import Loss, check_loss, margin
from .steps import check_length, check_whole

__all__ = ["BallAttack", "Search"]


@final
class Search:
    """The loss of a model around some images, and the best point of each that was seen so far.

    Best is where the best other class leads the true one by most, or trails it by least, whatever
    loss is climbed; the later one among equals.

    Args:
        model: the model, in eval mode.
        x: the images, in [0, 1].
        labels: their true labels.
        loss: the loss to raise.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch ..."],
        labels: Int[Tensor, " batch"],
        loss: Loss,
    ) -> None:
        self.model, self.labels, self._loss = model, labels, loss
        self.best = x.clone()
        self.flipped = torch.zeros_like(labels, dtype=torch.bool)
        self.stuck = torch.zeros_like(self.flipped)
        self.lead = torch.full_like(labels, -torch.inf, dtype=torch.float64)
        self._checked = False

    def look(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """Return the loss at points, and keep those that are the best so far."""
        logits: Tensor = self.model(x)
        if not self._checked:  # once, since it looks at values
            check_logits(logits, self.labels)
            self._checked = True
        # In double precision, or small differences between small logits are lost in the loss.
        logits = logits.double()
        self._keep(x.detach(), logits.detach())
        return self._loss(logits, self.labels)

    def ascend(
        self, x: Float[Tensor, "batch ..."], within: Ball
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch ..."]]:
        """Look at points, and return their loss and the move of norm 1 that raises it most.

        A loss of NaN is returned as the lowest there is.

        Raises:
            AttackError: if the logits do not depend differentiably on the images.
        """
        x = x.detach().requires_grad_()
        loss = self.look(x)
        gradient = None
        if loss.requires_grad:
            # The sum: a mean over the batch would make small gradients smaller still.
            (gradient,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
        if gradient is None:
            raise AttackError(
                "the model's logits do not depend differentiably on the images, so a gradient "
                "attack cannot run and would call any such model robust; use an attack without "
                "gradients"
            )
        move, finite = within.ascent(gradient)
        self.stuck |= ~finite
        return loss.detach().nan_to_num(-torch.inf, torch.inf, -torch.inf), move

    def rows(self, rows: Int[Tensor, " rows"]) -> Search:
        """Return the search around some of the images, from what is known of them."""
        part = Search(self.model, self.best[rows], self.labels[rows], self._loss)
        part.flipped, part.lead = self.flipped[rows], self.lead[rows]
        part.stuck, part._checked = self.stuck[rows], self._checked
        return part

    def update(self, rows: Int[Tensor, " rows"], part: Search) -> None:
        """Take over what a search around some of the images came to."""
        self.best[rows], self.lead[rows] = part.best, part.lead
        self.flipped[rows], self.stuck[rows] = part.flipped, part.stuck

    def _keep(self, x: Float[Tensor, "batch ..."], logits: Float[Tensor, "batch classes"]) -> None:
        # argmax would take the first NaN for an answer.
        wrong = (logits.argmax(1) != self.labels) | logits.isnan().any(1)
        lead = margin(logits, self.labels).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        better = torch.where(wrong == self.flipped, lead >= self.lead, wrong)
        self.best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x, self.best)
        self.lead = torch.where(better, lead, self.lead)
        self.flipped = self.flipped | wrong


class BallAttack(Attack):
    """Gradient ascent of a loss in a ball, from random starts.

    Args:
        norm: norm of the ball.
        eps: radius, positive, in pixel units.
        steps: gradient steps of one run, at least 1.
        restarts: runs from a random start each, at least 1; later ones attack only the images that
            are still classified rightly.
        loss: what is raised; see :data:`stabnet_adversarial.losses.LOSSES`.

    Raises:
        InvalidOptionError: for an option out of range.
    """

    def __init__(
        self, norm: Literal["linf", "l2"], eps: float, steps: int, restarts: int, loss: str
    ) -> None:
        self.norm: Literal["linf", "l2"] = norm
        self.eps = check_length("eps", eps)
        self.steps, self.restarts = check_whole("steps", steps), check_whole("restarts", restarts)
        self.loss, self._loss = loss, check_loss(loss)

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Search for adversarial images within ``eps``; see :meth:`within`."""
        return self.within(model, x, y, torch.full((len(x),), self.eps, dtype=torch.float64))

    def within(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        radii: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch ..."]:
        """Search for adversarial images, each in a ball of its own radius instead of ``eps``.

        This tests certificates, which give every image its own radius.

        Args:
            model: the model under attack, attacked in eval mode; normalization is part of it.
            x: images in [0, 1].
            y: their true labels.
            radii: one radius per image, at least 0, in pixel units.

        Returns:
            The best point that was seen of every image: where another class leads the true one by
            most, or trails it by least.

        Raises:
            InvalidInputError: for images, labels or radii that do not fit, or a radius at which
                the ball holds every image there is.
            AttackError: if the model gives no gradient, or the result breaks the rules.

        Warns:
            RuntimeWarning: if the gradient is not finite in some image, which a step then leaves
                alone.
        """
        check_images(x, y)
        self._check_radii(x, radii)
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(model):
            # A tensor made in inference mode takes part in no gradient.
            x, labels = x.detach().clone(), y.detach().clone().long()
            radii = radii.detach().clone().to(x.device, torch.float64)
            search = Search(model, x, labels, self._loss)
            for restart in range(self.restarts):
                whole = ball(self.norm, x, radii)
                start = whole.start()  # of all: no draw depends on which other images are left
                if restart == 0:
                    self._climb(search, whole, start)
                    continue
                left = (~search.flipped).nonzero().flatten()
                if not len(left):
                    break
                part = search.rows(left)
                self._climb(part, ball(self.norm, x[left], radii[left]), start[left])
                search.update(left, part)
        _warn_of(search.stuck)
        size = check_perturbation(search.best, x, eps=float(radii.max()), norm=self.norm)
        _check_each(size, radii, x)
        return search.best

    @abstractmethod
    def _climb(self, search: Search, within: Ball, x: Float[Tensor, "batch ..."]) -> None:
        """Search from one start; ``search`` remembers what was found."""

    def _check_radii(self, x: Float[Tensor, "batch ..."], radii: Float[Tensor, " batch"]) -> None:
        """Raise unless radii fit, and no ball holds the whole unit cube."""
        if radii.shape != x.shape[:1] or not radii.is_floating_point():
            raise InvalidInputError(
                f"radii have shape {tuple(radii.shape)} and dtype {radii.dtype}; expected one "
                f"floating-point radius per image, shape {tuple(x.shape[:1])}"
            )
        if not bool((radii >= 0).all()):  # false for NaN too
            raise InvalidInputError(
                f"radii go down to {float(radii.min()):.6g}; expected numbers, at least 0"
            )
        largest = float(radii.max())
        diameter = 1.0 if self.norm == "linf" else math.sqrt(x[0].numel())
        if largest > diameter:
            raise InvalidInputError(
                f"eps={largest!r} exceeds {diameter:.6g}, the {self.norm} distance of any two "
                f"images of shape {tuple(x.shape[1:])}; it is in units of images in [0, 1], so "
                "half of the grey levels are written 127/255"
            )


def _check_each(
    size: Float[Tensor, " batch"], radii: Float[Tensor, " batch"], x: Float[Tensor, "batch ..."]
) -> None:
    """Raise if a perturbation exceeds the image's own radius by more than rounding."""
    slack = torch.finfo(x.dtype).eps * x[0].numel() ** 0.5
    beyond = int((size > radii + slack).sum())
    if beyond:
        raise AttackError(f"the attack left the balls of {beyond} of {len(x)} images")


def _warn_of(stuck: Bool[Tensor, " batch"]) -> None:
    count = int(stuck.sum())
    if count:
        warnings.warn(
            f"the model's input gradient is not finite in {count} of {len(stuck)} images; the "
            "attack makes no progress there, and they look more robust than they are",
            RuntimeWarning,
            stacklevel=3,
        )
