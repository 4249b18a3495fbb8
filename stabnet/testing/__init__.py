"""The conformance kit: does a part keep the contract of its kind?

For plugin authors. ``stabnet check "my_*"`` prints what :func:`check_entries` finds; as tests,

.. code-block:: python

    @stabnet.testing.parametrize_entries("my_*")
    def test_conformance(check):
        check()

Every entry is built from the ``example`` that it was registered with: keyword arguments for
:func:`stabnet.build`, with shapes as tiny as can be, and tolerances near rounding, so that no
numerical error hides a fault. By kind, an example holds at least:

==============  ===================================================================================
kind            what its example holds, and how the kit calls the part
==============  ===================================================================================
model           ``in_shape``, ``num_outputs``, tiny parts; called on inputs in [0, 1]. Solves must
                converge: give their solvers a tolerance of 1e-9 or less.
backbone        ``in_shape``; called on inputs in [0, 1]
vector_field    ``state_shape``, ``feature_shape``; called as ``F(0.5, z, u)``
cell            ``state_shape``, ``feature_shape``; called as ``f(z, u)``
potential       ``state_shape``; called with a :class:`~stabnet.interfaces.Context` that holds
                labels of three classes, and a head
block           ``state_shape``; called with features of its attribute ``feature_shape`` or, where
                it has none, of the state's shape
head            ``in_features``, ``num_outputs``
integrator      its options; called on oscillators ``q' = p, p' = −u² q`` from time 0 to 1/2 and
                back, with the state ``(q, p)``. A relative error of 1/4 is allowed.
solver          its options, with a tolerance of 1e-9 or less; called on affine contractions by 1/2
objective       its options; called with a tiny model of the dynamics that it declares
attack          its options, few steps; called on a tiny classifier and images (1, 4, 4)
dataset         nothing, or options: a data set whose files are missing is skipped
optimizer       its options but ``params``; tried on the weights of a tiny classifier
==============  ===================================================================================

A fault in what all other checks need (the factory, the build, the shapes, the precision,
side effects, determinism) is reported once, and the checks that need it are skipped.
"""

from ._outcome import CheckResult, ConformanceError, SkipCheck
from ._run import check_entries, check_entry, parametrize_entries
from ._table import Check, checks_for

__all__ = [
    "Check",
    "CheckResult",
    "ConformanceError",
    "SkipCheck",
    "check_entries",
    "check_entry",
    "checks_for",
    "parametrize_entries",
]
