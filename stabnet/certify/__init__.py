"""Certification: what provably cannot happen to a classifier, whatever the attack.

Bounds are carried through the model's parts by what they say of themselves; see
:func:`stabnet.bounds.interval`. Training may use the same bounds, without their rounding margins.
"""

from ._margins import interval_logits, margin_bounds

__all__ = [
    "interval_logits",
    "margin_bounds",
]
