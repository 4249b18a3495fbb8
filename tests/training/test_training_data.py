"""Training on a data set of ``stabnet.data``."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from training_stand_ins import OPTIONS

import stabnet
from stabnet.data import from_tensors, split
from stabnet.interfaces import Objective
from stabnet.training import fit


class Plain(Objective):
    def forward(self, model, x, y):
        return nn.functional.cross_entropy(model(x), y), {}


def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    x = 0.4 * torch.rand(n, 1, 8, 8, generator=generator) + 0.6 * y[:, None, None, None]
    return x, y


@pytest.fixture
def data():
    dataset = from_tensors(*images(60, 0), *images(30, 1), augmentation="crop_flip")
    return split(dataset)


def unaugmented(splits):
    dataset = dataclasses.replace(splits.dataset, augmentation="none")
    return dataclasses.replace(splits, dataset=dataset)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_a_cut_run_with_augmentation_resumes_to_the_identical_result(data, tmp_path):
    options = {**OPTIONS, "objective": Plain(), "epochs": 2}
    whole = fit(make_model(), data, run_dir=tmp_path / "whole", **options)
    cut = fit(make_model(), data, run_dir=tmp_path / "cut", time_limit=1e-6, **options)
    assert not cut.complete
    resumed = fit(make_model(), data, run_dir=tmp_path / "cut", resume=True, **options)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    plain = fit(make_model(), unaugmented(data), run_dir=tmp_path / "plain", **options)
    assert not torch.equal(plain.model[1].weight, whole.model[1].weight)


def test_the_objective_is_built_by_name(data, tmp_path):
    options = {**OPTIONS, "epochs": 1, "run_dir": tmp_path / "run"}
    smoothed = {"name": "cross_entropy", "label_smoothing": 0.1}
    result = fit(make_model(), data, objective=smoothed, **options)
    assert "`cross_entropy`" in result.report.read_text()
    with pytest.raises(stabnet.InvalidOptionError, match=r"label_smoothing was 0\.1"):
        fit(make_model(), data, objective="cross_entropy", resume=True, **options)
