"""Running the kit: as records that never raise, and as tests."""

from __future__ import annotations

import subprocess
import sys
import unittest

import pytest

import stabnet
from stabnet.errors import InvalidOptionError, UnknownNameError
from stabnet.testing import (
    ConformanceError,
    SkipCheck,
    check_entries,
    checks_for,
    parametrize_entries,
)

pytest_plugins = "pytester"

PLUGIN = """
import torch, stabnet

class Gauge(stabnet.interfaces.Backbone):
    '''A backbone for this test.'''

    def __init__(self, in_shape, fault=False):
        super().__init__()
        self.in_shape, self.out_shape, self.fault = tuple(in_shape), (2,), fault
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x):
        out = self.linear(x)
        return out - out.mean(0) if self.fault else out

for name, fault in (("gauge_sound", False), ("gauge_coupled", True)):
    example = {"in_shape": (3,), "fault": fault}
    stabnet.register.backbone(name, summary="a gauge", example=example)(Gauge)
"""

TESTS = """
@stabnet.testing.parametrize_entries("gauge_*", expected_failures={failures})
def test_conformance(check):
    check()
"""


def run_tests(pytester, failures):
    """Run a plugin author's test file in a process of its own."""
    pytester.makepyfile(PLUGIN + TESTS.format(failures=failures))
    return pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider")


CHECKS = 2 * len(checks_for(stabnet.entries("mlp", kind="backbone")[0]))
"""Tests of the two backbones; of each, guarantees and bound are skipped."""


def test_fault_is_one_failing_test_with_a_readable_name(pytester):
    result = run_tests(pytester, {})
    result.assert_outcomes(failed=1, passed=CHECKS - 5, skipped=4)
    result.stdout.fnmatch_lines(
        [
            "*test_conformance?backbone/gauge_coupled-check_batch_independence? FAILED*",
            "*backbone/gauge_coupled: expected a sample's output alone*",
        ]
    )


def test_expected_failure_is_strict(pytester):
    found = ("backbone/gauge_coupled", "check_batch_independence")
    absent = ("backbone/gauge_sound", "check_batch_independence")
    result = run_tests(pytester, {found: "known", absent: "not true"})
    result.assert_outcomes(xfailed=1, failed=1, passed=CHECKS - 6, skipped=4)
    result.stdout.fnmatch_lines(["*XPASS(strict)*not true*"])


def test_expected_failure_of_nothing_is_refused():
    with pytest.raises(InvalidOptionError, match="check_shape'"):
        parametrize_entries("mlp", expected_failures={("backbone/mlp", "check_shape"): "typo"})


def test_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UnknownNameError, match="no registered name matches 'nothing'"):
        parametrize_entries("nothing")
    assert check_entries("nothing") == []


def test_unknown_kind_is_refused():
    with pytest.raises(UnknownNameError, match="no kind 'heads'"):
        check_entries(kind="heads")


def test_results_are_in_order_of_entries_and_say_how_long_they_took():
    results = check_entries("identity")
    assert [r.entry.kind for r in results] == sorted(r.entry.kind for r in results)
    assert {r.entry.name for r in results} == {"identity"}
    assert all(r.seconds > 0 for r in results)
    assert all((r.message == "") == (r.status == "passed") for r in results)
    names = [r.check for r in results if r.entry.kind == "head"]
    assert names == [c.name for c in checks_for(results[-1].entry)]


def test_what_checks_raise_is_what_test_runners_know():
    assert issubclass(ConformanceError, AssertionError)
    assert issubclass(SkipCheck, unittest.SkipTest)


def test_importing_the_kit_needs_no_pytest():
    code = "import sys, stabnet.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
