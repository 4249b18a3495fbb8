from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stabnet
from stabnet.interfaces import Objective
from stabnet.training import NonFiniteLossError, evaluate


class Squares(Objective):
    task = "regression"

    def forward(self, model, x, y):
        return ((model(x) - y) ** 2).mean(), {"batch": torch.tensor(float(len(x)))}


class Labels(Objective):
    def forward(self, model, x, y):
        assert not model.training
        assert not torch.is_grad_enabled()
        return nn.functional.cross_entropy(model(x), y), {}


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 23])
def test_means_weigh_every_sample_once_whatever_the_batch_size(batch_size):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(23, 3, generator=generator), torch.randn(23, 2, generator=generator)
    model = linear()
    found = evaluate(model, DataLoader(TensorDataset(x, y), batch_size), Squares())
    assert found["loss"] == pytest.approx(((model(x) - y) ** 2).mean().item(), rel=1e-6)


def test_accuracy_is_computed_where_the_objective_does_not_log_it():
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(2)), torch.arange(9) % 2
    model = linear()
    found = evaluate(model, DataLoader(TensorDataset(x, y), 4), Labels())
    exact = (model(x).argmax(1) == y).double().mean().item()
    assert found["accuracy"] == pytest.approx(exact, abs=1e-7)


def test_evaluation_restores_the_mode_of_every_module():
    model = nn.Sequential(linear(), nn.Dropout(), nn.BatchNorm1d(2))
    model.train()
    model[1].eval()
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    before = model[2].running_mean.clone()
    evaluate(model, DataLoader(TensorDataset(x, y), 2), Labels())
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(model[2].running_mean, before)


def test_a_non_finite_loss_is_an_error_that_names_its_batch():
    x, y = torch.zeros(6, 3), torch.zeros(6, 2)
    x[5] = torch.inf
    loader = DataLoader(TensorDataset(x, y), 2)
    with pytest.raises(NonFiniteLossError, match="at step 3 of the test set"):
        evaluate(linear(), loader, Squares(), name="test set")


def test_an_empty_set_is_an_error():
    loader = DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0, 2)), 2)
    with pytest.raises(stabnet.InvalidInputError, match="no batch"):
        evaluate(linear(), loader, Squares())
