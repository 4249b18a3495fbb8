"""The robustness report: what was measured, and how far it can be trusted."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from ._masking import pixels
from ._results import AttackResult, CleanResult

__all__ = ["RobustnessReport"]


@dataclass(frozen=True)
class RobustnessReport:
    """What attacks did to a model, with the settings needed to repeat it.

    Attributes:
        model: the model's registered name, or its class.
        clean: what the model does unattacked.
        seed: seed of the run.
        results: one result per attack and radius, all on the same images.
        single_step: single-step results that serve the warnings and are no part of the protocol.
        warnings: what looks like gradient masking; empty if nothing does.
    """

    model: str
    clean: CleanResult
    seed: int
    results: tuple[AttackResult, ...]
    single_step: tuple[AttackResult, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def caveat(self) -> str:
        """How the numbers are to be read."""
        steps = sorted({r.steps for r in self.results})
        count = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        if {r.attack for r in self.results} == {"ifgsm", "pgd"}:
            weak = (
                f"This protocol is weak: {count} gradient steps on the cross entropy, one start, "
                "no restarts. Accuracy under it is an upper bound of the true robust accuracy, and "
                "no certificate. From a random start so few steps may not reach the far side of "
                "the ball, so PGD can come out weaker than I-FGSM."
            )
        else:
            weak = (
                f"With {count} gradient steps an image this is no ensemble of strong attacks. "
                "Accuracy under it is an upper bound of the true robust accuracy in the norm "
                f"{self._norms}, says nothing about other norms, and is no certificate."
            )
        return (
            "An image counts as robust only if it is classified rightly before and after the "
            f"attack. {weak} Stability in the state is not robustness in the input."
        )

    @property
    def _norms(self) -> str:
        """The norms of the attacks, in words."""
        return " or ".join(dict.fromkeys(r.norm for r in self.results))

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain row for the clean images and one per result."""
        clean = {
            "attack": "none",
            "norm": self._norms,
            "eps": 0.0,
            "steps": 0,
            "step_size": None,
            "seed": self.seed,
            "images": self.clean.images,
            "accuracy": self.clean.accuracy,
            "max_perturbation": 0.0,
            "converged_share": self.clean.converged_share,
        }
        return [clean, *({k: r.to_dict()[k] for k in clean} for r in self.results)]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain data for JSON."""
        return {
            "model": self.model,
            "seed": self.seed,
            "clean": self.clean.to_dict(),
            "results": [r.to_dict() for r in self.results],
            "single_step": [r.to_dict() for r in self.single_step],
            "warnings": list(self.warnings),
            "caveat": self.caveat,
        }

    def to_markdown(self) -> str:
        """Return the rows as a Markdown table, with warnings and caveat below."""
        head = ("attack", "norm", "eps", "steps", "step size", "images", "seed", "accuracy")
        table = [" | ".join(head), " | ".join("---" for _ in head)]
        for row in self.rows():
            step = row["step_size"]
            cells = (
                row["attack"],
                row["norm"],
                pixels(row["eps"]),
                row["steps"],
                "–" if step is None else pixels(step),
                row["images"],
                row["seed"],
                f"{row['accuracy']:.2%}",
            )
            table.append(" | ".join(map(str, cells)))
        lines = [f"| {line} |" for line in table]
        shares = [r.converged_share for r in self.results if r.converged_share is not None]
        if self.clean.converged_share is not None and shares:
            clean, worst = self.clean.converged_share, min(shares)
            lines += ["", f"Converged solves: {clean:.2%} clean, at least {worst:.2%} attacked."]
        for warning in self.warnings:
            lines += ["", f"**Warning.** {warning}."]
        if not self.warnings:
            lines += [
                "",
                "No sign of gradient masking was found, which is no proof of its absence.",
            ]
        return "\n".join([f"### Robustness of `{self.model}`", "", *lines, "", self.caveat, ""])

    def write_json(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON; the file appears whole or not at all.

        Args:
            path: where; missing folders are made.

        Returns:
            The path.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        target = Path(path)
        write_text(target, f"{text}\n")
        return target
