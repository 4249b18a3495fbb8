"""Running the checks: as records, or as tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ..errors import InvalidOptionError, UnknownNameError
from ..plugin import Entry, entries
from ._outcome import CheckResult, ConformanceError, SkipCheck
from ._table import Check, checks_for

if TYPE_CHECKING:
    import pytest

__all__ = ["check_entries", "check_entry", "parametrize_entries"]


def check_entry(entry: Entry) -> list[CheckResult]:
    """Run every check that applies to an entry.

    Args:
        entry: a registered name, from :func:`stabnet.entries`.

    Returns:
        One result per check. What a check raises is in its result.
    """
    return [_result(check) for check in checks_for(entry)]


def check_entries(pattern: str = "*", kind: str | None = None) -> list[CheckResult]:
    """Run every check of all registered names that match.

    Args:
        pattern: a shell pattern of names, such as ``"my_*"``.
        kind: one kind only.

    Returns:
        One result per entry and check; none if no name matches.

    Raises:
        UnknownNameError: for an unknown kind.
    """
    return [result for entry in entries(pattern, kind=kind) for result in check_entry(entry)]


def _result(check: Check) -> CheckResult:
    start = time.perf_counter()
    status: Literal["passed", "failed", "skipped"] = "passed"
    message = ""
    try:
        check()
    except SkipCheck as reason:
        status, message = "skipped", str(reason)
    except ConformanceError as error:
        status, message = "failed", str(error)
    except Exception as error:
        where = f"{check.entry.kind}/{check.entry.name}"
        status, message = "failed", f"{where}: {type(error).__name__}: {error}"
    return CheckResult(check.entry, check.name, status, message, time.perf_counter() - start)


def parametrize_entries(
    pattern: str = "*",
    *,
    kind: str | None = None,
    expected_failures: Mapping[tuple[str, str], str] | None = None,
) -> pytest.MarkDecorator:
    """Make a pytest test of every check of all registered names that match.

    .. code-block:: python

        @stabnet.testing.parametrize_entries("my_*")
        def test_conformance(check):
            check()

    Args:
        pattern: a shell pattern of names.
        kind: one kind only.
        expected_failures: ``{("kind/name", "check_name"): reason}``, checks that are known to
            fail. They must fail (strict ``xfail``).

    Returns:
        The decorator; tests are called ``kind/name-check_name``.

    Raises:
        UnknownNameError: if no name matches, for a test that checks nothing cannot fail.
        InvalidOptionError: for an expected failure of a check that there is not.
    """
    import pytest

    checks = [check for entry in entries(pattern, kind=kind) for check in checks_for(entry)]
    if not checks:
        raise UnknownNameError(
            f"no registered name matches {pattern!r}{f' of kind {kind}' if kind else ''}; "
            "is the plugin installed? `stabnet plugins` shows what became of it"
        )
    keys = {(f"{c.entry.kind}/{c.entry.name}", c.name): c for c in checks}
    reasons = dict(expected_failures or {})
    unknown = [key for key in reasons if key not in keys]
    if unknown:
        raise InvalidOptionError(
            f"expected_failures names {unknown}, which are no checks of the entries that match; "
            'a key is ("kind/name", "check_name")'
        )
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id="-".join(key),
                marks=pytest.mark.xfail(strict=True, reason=reasons[key]) if key in reasons else (),
            )
            for key, check in keys.items()
        ],
    )
