"""The kit finds each fault, and blames it on the right check."""

from __future__ import annotations

import importlib

import pytest
import testing_broken_parts as parts

import stabnet
from stabnet.plugin import KINDS, Entry, Registry
from stabnet.testing import check_entry, checks_for

EXAMPLES = {
    "model": (parts.network, {"in_shape": (1, 3, 3), "num_outputs": 3}),
    "backbone": (parts.Reader, {"in_shape": (1, 3, 3)}),
    "vector_field": (parts.Field, {"state_shape": (4,), "feature_shape": (2,)}),
    "cell": (parts.Map, {"state_shape": (4,), "feature_shape": (4,)}),
    "potential": (parts.Bowl, {"state_shape": (4,)}),
    "block": (parts.Step, {"state_shape": (4,)}),
    "head": (parts.Head, {"in_features": 4, "num_outputs": 3}),
    "integrator": (parts.Heun, {"steps": 4}),
    "solver": (parts.Picard, {}),
    "objective": (parts.Squares, {}),
    "attack": (parts.Sign, {"eps": 0.05}),
    "dataset": (parts.pixels, {}),
    "optimizer": (parts.descent, {"lr": 0.05}),
}

FAULTS = {
    ("model", "modest"): {"check_solution"},
    ("backbone", "coupled"): {"check_batch_independence"},
    ("vector_field", "mixes"): {"check_field_samples"},
    ("cell", "coupled"): {"check_batch_independence"},
    ("cell", "declared"): set(),
    ("potential", "mixes"): {"check_potential_samples"},
    ("potential", "gradient"): {"check_potential_gradient"},
    ("potential", "negative"): {"check_potential_sign"},
    ("potential", "center"): {"check_potential_center"},
    ("block", "in place"): {"check_side_effects"},
    ("head", "shape"): {"check_shapes"},
    ("head", "dtype"): {"check_dtype"},
    ("head", "random"): {"check_determinism"},
    ("head", "coupled"): {"check_batch_independence"},
    ("head", "detached"): {"check_gradients"},
    ("head", "grad mode"): {"check_no_grad"},
    ("head", "wakes"): {"check_side_effects"},
    ("head", "seeds"): {"check_side_effects"},
    ("head", "default dtype"): {"check_side_effects"},
    ("head", "unsaved buffer"): {"check_state_dict", "check_save_load"},
    ("head", "shared"): {"check_deepcopy"},
    ("head", "claim"): {"check_guarantees"},
    ("head", "bound"): {"check_lipschitz_bound"},
    ("head", "stale"): {"check_lipschitz_bound"},
    ("block", "far"): {"check_lipschitz_bound"},
    ("block", "features"): {"check_lipschitz_bound"},
    ("integrator", "step"): {"check_integration"},
    ("integrator", "nfe"): {"check_integration"},
    ("integrator", "times"): {"check_integration_times"},
    ("solver", "origin"): {"check_solver_solution"},
    ("solver", "last"): {"check_solver_failure"},
    ("objective", "logs"): {"check_objective"},
    ("attack", "ball"): {"check_attack_ball"},
    ("attack", "sign"): {"check_attack_ball"},
    ("attack", "pixels"): {"check_attack_ball"},
    ("attack", "modes"): {"check_attack_effects"},
    ("attack", "gradients"): {"check_attack_effects"},
    ("dataset", "range"): {"check_dataset_samples"},
    ("dataset", "grows"): {"check_dataset_split"},
    ("dataset", "absent"): set(),
    ("optimizer", "idle"): {"check_optimizer_steps"},
    ("optimizer", "forgetful"): {"check_optimizer_resumes"},
}
"""What the kit must fail: exactly this, for each kind and fault."""

FACTORIES = {
    "**kwargs": (parts.careless_head, "check_factory"),
    "no num_outputs": (parts.narrow_head, "check_factory"),
    "no such module": ("stabnet.nowhere:Head", "check_factory"),
    "no module": (parts.no_module, "check_build"),
    "extra state": (parts.ExtraStateHead, "check_save_load"),
    "undescribed option": (parts.undescribed_head, "check_config"),
}


@pytest.fixture
def register(monkeypatch):
    """Register an entry in a registry that holds nothing else."""
    house = importlib.import_module("stabnet.plugin.build")._PLUGINS
    monkeypatch.setattr(house, "_registry", Registry())
    monkeypatch.setattr(house, "_loaded", True)

    def register(kind, target, example, summary="made for this test"):
        entry = Entry(kind, "mine", target, summary, example=example)
        house.registry._entries[kind, "mine"] = entry
        return entry

    return register


def failed(results):
    return {r.check: r.message for r in results if r.status == "failed"}


@pytest.mark.parametrize("kind", KINDS)
def test_sound_part_of_every_kind_passes(register, kind):
    results = check_entry(register(kind, *EXAMPLES[kind]))
    assert failed(results) == {}
    reasons = {r.message for r in results if r.status == "skipped"}
    assert reasons <= {"it states no guarantees", "it bounds no Lipschitz constant"}


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_fault_fails_exactly_its_check(register, kind, fault):
    target, example = EXAMPLES[kind]
    found = failed(check_entry(register(kind, target, {**example, "fault": fault})))
    assert set(found) == FAULTS[kind, fault], found
    assert all(f"{kind}/mine" in message for message in found.values())


@pytest.mark.parametrize("fault", FACTORIES)
def test_faulty_factory_fails_exactly_its_check(register, fault):
    target, check = FACTORIES[fault]
    assert set(failed(check_entry(register("head", target, EXAMPLES["head"][1])))) == {check}


@pytest.mark.parametrize(("example", "summary"), [(None, "a head"), (EXAMPLES["head"][1], " ")])
def test_missing_example_or_summary_is_found(register, example, summary):
    found = failed(check_entry(register("head", parts.Head, example, summary)))
    assert set(found) == {"check_registration"}


def test_every_check_has_a_fault_that_only_it_finds():
    alone = [found for found in FAULTS.values() if len(found) == 1]
    caught = {"check_registration", "check_state_dict"}.union(*alone)
    caught |= {check for _, check in FACTORIES.values()}
    every = {c.name for kind in KINDS for c in checks_for(Entry(kind, "mine", parts.Head))}
    assert caught == every


def test_declared_coupling_is_skipped_with_its_reason(register):
    target, example = EXAMPLES["cell"]
    results = check_entry(register("cell", target, {**example, "fault": "declared"}))
    (result,) = [r for r in results if r.check == "check_batch_independence"]
    assert (result.status, "per_sample" in result.message) == ("skipped", True)


def test_missing_data_are_skipped_with_their_reason(register):
    results = check_entry(register("dataset", parts.pixels, {"fault": "absent"}))
    skipped = {r.check: r.message for r in results if r.status == "skipped"}
    assert set(skipped) == {"check_build", "check_dataset_samples", "check_dataset_split"}
    assert set(skipped.values()) == {"no files here"}


def test_entry_that_is_not_registered_is_not_mistaken_for_its_namesake(register):
    register("head", *EXAMPLES["head"])
    other = Entry("head", "mine", parts.Head, "another", example={"in_features": 2})
    assert "not what is registered" in failed(check_entry(other))["check_build"]


def test_whole_kit_leaves_no_mark_on_the_process(register):
    import random

    import numpy as np
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    for fault in ("default dtype", "seeds", "random"):
        check_entry(register("head", parts.Head, {**EXAMPLES["head"][1], "fault": fault}))
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(before[0], torch.get_rng_state())
    after = random.getstate(), np.random.get_state()[1].tobytes()
    assert before[1:] == after
    assert stabnet.entries(kind="head")[0].name == "mine"
