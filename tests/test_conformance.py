"""Every registered name keeps the contract of its kind."""

from __future__ import annotations

import stabnet.testing


@stabnet.testing.parametrize_entries()
def test_conformance(check):
    check()
