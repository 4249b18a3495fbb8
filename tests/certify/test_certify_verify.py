"""Verified accuracy: below every attack, above nothing, and repeatable."""

from __future__ import annotations

import json

import pytest
import torch
from certify_stand_ins import Net, Settled, Silent, build, data, pgd, trained
from torch import nn

import stabnet
from stabnet.bounds import NoBoundError
from stabnet.certify import CertificationReport, verified_accuracy
from stabnet.cli import main
from stabnet.errors import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Guarantee


@pytest.fixture(scope="module")
def model():
    return trained()


def batches(size=32, seed=1):
    x, y = data(seed=seed)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("eps", [0.02, 0.08, 0.15, 0.3])
def test_verified_is_at_most_robust_is_at_most_clean(model, eps):
    report = verified_accuracy(model, batches(), eps)
    x, y = data(seed=1)
    clean = model(x).argmax(1) == y
    robust = clean.clone()
    for seed in range(3):
        robust &= model(pgd(model, x, y, eps, seed=seed)).argmax(1) == y
    assert report.correct == int(clean.sum())
    assert bool(robust[list(report.verified)].all())
    assert report.verified_accuracy <= float(robust.double().mean()) <= report.clean_accuracy
    assert eps > 0.05 or report.verified_accuracy > 0.9  # it is not below for being nothing


def test_without_perturbation_verified_accuracy_is_accuracy():
    torch.manual_seed(3)
    untrained = build(seed=3)
    x, y = data(seed=1)
    right = (untrained(x).argmax(1) == y).nonzero().flatten().tolist()
    report = verified_accuracy(untrained, [(x, y)], 0.0)
    assert 0 < len(right) < len(x)
    assert report.verified == tuple(right)
    assert report.verified_accuracy == report.clean_accuracy


def test_the_order_of_batches_and_their_size_do_not_matter(model):
    whole = verified_accuracy(model, batches(90), 0.1)
    parts = verified_accuracy(model, batches(7), 0.1)
    assert whole.verified == parts.verified
    assert 0 < len(whole.verified) < whole.images
    some = verified_accuracy(model, batches(7), 0.1, max_images=40)
    assert some.images == 40
    assert some.verified == tuple(i for i in whole.verified if i < 40)


def test_the_model_is_left_as_it_was():
    network = build(head=nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.5)))
    network.train()
    network.dynamics.eval()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    verified_accuracy(network, batches(), 0.1)
    assert network.training
    assert network.head[1].training
    assert not network.dynamics.map.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


def test_dropout_and_batch_normalization_are_verified_in_eval_mode():
    network = build(head=nn.Sequential(nn.BatchNorm1d(12), nn.Dropout(0.9), nn.Linear(12, 3)))
    network.train()
    first = verified_accuracy(network, batches(90), 0.01)
    assert first.verified == verified_accuracy(network, batches(9), 0.01).verified


def test_an_edit_of_the_weights_in_place_is_seen():
    network = trained(steps=60)
    before = verified_accuracy(network, batches(), 0.05)
    with torch.no_grad():
        network.head.weight.data.neg_()
        network.head.bias.data.neg_()
    after = verified_accuracy(network, batches(), 0.05)
    assert len(before.verified) > 10
    assert after.verified == ()


def test_a_model_with_nan_weights_verifies_nothing():
    network = build()
    network.head.weight.data[0, 0] = torch.nan
    report = verified_accuracy(network, batches(), 0.0)
    assert (report.correct, report.verified) == (0, ())


def test_the_report_says_what_was_proven_of_which_images(model, tmp_path):
    report = verified_accuracy(model, batches(), 0.1, max_images=50)
    path = report.write_json(tmp_path / "certificates" / "report.json")
    kept = json.loads(path.read_text())
    assert kept["verified"] == list(report.verified)
    assert (kept["eps"], kept["norm"], kept["images"]) == (0.1, "linf", 50)
    assert kept["verified_accuracy"] == len(report.verified) / 50
    guarantee = report.guarantee()
    assert isinstance(guarantee, Guarantee)
    assert guarantee.status == "verified"
    assert f"for {len(report.verified)} of the 50 images" in guarantee.claim
    table = report.to_markdown()
    assert f"| linf | 0.1 | 50 | {report.clean_accuracy:.2%} | {report.verified_accuracy:.2%}" in (
        table
    )
    assert "lower bound of the accuracy under any attack" in table


def test_a_report_is_frozen():
    report = CertificationReport("m", 0.1, 2, 1, (0,), 0.5)
    assert (report.clean_accuracy, report.verified_accuracy) == (0.5, 0.5)
    with pytest.raises(AttributeError):
        report.correct = 2


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {"eps": 0.1}, InvalidInputError, "no images"),
        ([data(3)], {"eps": 1.5}, InvalidOptionError, "eps=1.5"),
        ([data(3)], {"eps": float("nan")}, InvalidOptionError, "eps=nan"),
        ([data(3)], {"eps": 0.1, "max_images": 0}, InvalidOptionError, "max_images=0"),
        ([data(3)[0]], {"eps": 0.1}, InvalidInputError, r"a batch is \(images, labels\)"),
        ([(data(3)[0] * 255, data(3)[1])], {"eps": 0.1}, InvalidInputError, r"expected \[0, 1\]"),
        ([(data(3)[0], data(3)[1] + 1)], {"eps": 0.1}, InvalidInputError, "labels go up to 3"),
    ],
)
def test_bad_input_is_refused(given, options, error, message):
    with pytest.raises(error, match=message):
        verified_accuracy(build(), given, **options)


def test_a_model_that_cannot_be_bounded_is_refused_by_the_name_of_its_part():
    with pytest.raises(NoBoundError, match="Silent"):
        verified_accuracy(build(dynamics=Silent()), batches(), 0.1)


# The command.


@pytest.fixture(scope="module")
def certifiable():
    """Register a model for the digits, all of whose parts bound themselves."""

    @stabnet.register.model("certifiable_digits")
    def certifiable_digits(in_shape, num_outputs):
        """Return a tiny model."""
        torch.manual_seed(0)
        net = Net(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), tuple(in_shape), (16,))
        return stabnet.StabilityModel(
            in_shape, num_outputs, net, Settled(16), nn.Linear(16, num_outputs)
        )

    return stabnet.build("certifiable_digits", in_shape=(1, 8, 8), num_outputs=10)


def run(capsys, *arguments):
    """Run a command and return its exit status, output and errors."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0), *capsys.readouterr()


def test_certify_prints_and_keeps_the_report(capsys, certifiable, tmp_path):
    stabnet.save(certifiable, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"data": {"name": "digits"}}))
    status, out, _ = run(capsys, "certify", tmp_path, "--eps", "0.001", "--images", "30")
    kept = json.loads((tmp_path / "certification.json").read_text())
    assert status == 0
    assert "### Certification of `certifiable_digits`" in out
    assert f"{kept['verified_accuracy']:.2%}" in out
    assert (kept["images"], kept["eps"]) == (30, 0.001)
    weights = tmp_path / "model.safetensors"
    status, out, _ = run(capsys, "certify", weights, "--eps", "0", "--data", "digits")
    assert status == 0
    assert "| linf | 0 |" in out


def test_certify_refuses_with_one_clean_message(capsys, certifiable, tmp_path):
    weights = tmp_path / "model.safetensors"
    stabnet.save(certifiable, weights)
    deq = tmp_path / "deq.safetensors"
    stabnet.save(stabnet.build("deq", in_shape=(1, 8, 8), num_outputs=10), deq)
    for message, *arguments in [
        ("no checkpoint at", tmp_path / "nothing", "--eps", "0.1"),
        ("--data", weights, "--eps", "0.1"),
        ("at least one", weights, "--eps", "0.1", "--images", "0"),
        ("eps=2.0 must be in [0, 1]", weights, "--eps", "2", "--data", "digits"),
        ("no interval bound", deq, "--eps", "0.1", "--data", "digits"),
    ]:
        status, out, err = run(capsys, "certify", *arguments)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert message in err
