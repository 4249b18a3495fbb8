"""Certification: what provably cannot happen to a classifier, whatever the attack.

Bounds are carried through the model's parts by what they say of themselves; see
:func:`stabnet.bounds.interval`. Training may use the same bounds, without their rounding margins.
"""

from ._lipschitz import LipschitzBound, lipschitz_bound
from ._margins import interval_logits, margin_bounds
from ._report import CertificationReport
from ._verify import verified_accuracy

__all__ = [
    "CertificationReport",
    "LipschitzBound",
    "interval_logits",
    "lipschitz_bound",
    "margin_bounds",
    "verified_accuracy",
]
