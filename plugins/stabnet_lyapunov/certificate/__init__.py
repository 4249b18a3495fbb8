"""The robustness certificate of LyaNet's Theorem 3, sound: see :mod:`.theorem` for the proofs."""

from .certify import lyapunov_certificate
from .report import LyapunovCertificate

__all__ = ["LyapunovCertificate", "lyapunov_certificate"]
