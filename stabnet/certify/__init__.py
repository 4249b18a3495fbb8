"""Certification: what provably cannot happen to a classifier, whatever the attack.

In the maximum norm, boxes are carried through the model's parts by what these say of themselves;
see :func:`stabnet.bounds.interval`. Training may use the same bounds, without their rounding
margins. In l2, radii follow from the parts' Lipschitz constants; see
:func:`stabnet.bounds.lipschitz_bound`.
"""

from ._lipschitz import LipschitzBound, lipschitz_bound
from ._margins import interval_logits, margin_bounds
from ._radii import CertifiedRadii, certified_accuracy, certified_radii
from ._radius_report import RadiusReport
from ._report import CertificationReport
from ._verify import verified_accuracy

__all__ = [
    "CertificationReport",
    "CertifiedRadii",
    "LipschitzBound",
    "RadiusReport",
    "certified_accuracy",
    "certified_radii",
    "interval_logits",
    "lipschitz_bound",
    "margin_bounds",
    "verified_accuracy",
]
