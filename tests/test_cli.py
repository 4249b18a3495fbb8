"""The command line: thin, quick, and with one clean message for every error."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stabnet
from stabnet.cli import main

TINY = ["--epochs", "1", "--batch-size", "256"]


@pytest.fixture
def run(capsys):
    """Run a command and return its exit status, output and errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code
        else:
            status = 0
        out, err = capsys.readouterr()
        return int(status or 0), out, err

    return run


def check_refused(outcome: tuple[int, str, str], *fragments: str) -> None:
    """The command said one clean thing on the standard error and failed."""
    status, out, err = outcome
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("stabnet")), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


# list


def test_list_names_every_entry_with_its_provider(run):
    status, out, err = run("list")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [(w[0], w[1]) for w in lines] == [(e.kind, e.name) for e in stabnet.entries()]
    assert all(
        w[2] == e.provider.distribution for w, e in zip(lines, stabnet.entries(), strict=True)
    )


def test_list_takes_a_pattern_and_a_kind(run):
    _, out, _ = run("list", "*deq*", "--kind", "model")
    assert [line.split()[1] for line in out.splitlines()[1:]] == stabnet.list_models("*deq*")
    check_refused(run("list", "--kind", "modl"), "did you mean 'model'")
    check_refused(run("list", "nothing-like-it"), "no registered name matches")


def test_list_takes_under_half_a_second_of_processor_time_in_an_own_process():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shell("list").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_text_in_brackets_is_not_taken_for_markup(run, bracketed):
    _, out, _ = run("list", "bracketed")
    assert "needs stabnet[attacks], images in [0, 1]" in out
    _, out, _ = run("info", "bracketed")
    assert "needs stabnet[attacks]" in out


@pytest.fixture
def bracketed():
    """A registered name whose summary looks like console markup."""
    registry = stabnet.plugin.build.__globals__["_PLUGINS"].registry
    before = dict(registry._entries)
    summary = "needs stabnet[attacks], images in [0, 1]"
    stabnet.register.solver("bracketed", summary=summary, example={})(lambda *, tolerance=1: None)
    yield
    registry._entries = before


# info, plugins


def test_info_shows_options_parts_and_references(run):
    status, out, _ = run("info", "lyadeq")
    assert status == 0
    for option in stabnet.info("lyadeq").signature.parameters:
        assert re.search(rf"^{option}\b", out, re.MULTILINE)
    assert "anderson, broyden" in out
    assert "@" in out
    assert stabnet.info("lyadeq").documentation.splitlines()[0] in out


def test_info_refuses_unknown_and_ambiguous_names(run):
    check_refused(run("info", "lyadec"), "did you mean 'lyadeq'")
    check_refused(run("info", "linear"), "say which kind you mean")
    assert run("info", "linear", "--kind", "head")[0] == 0


def test_plugins_shows_status_and_hooks(run):
    status, out, _ = run("plugins")
    assert status == 0
    lines = out.splitlines()[1:]
    assert len(lines) == len(stabnet.plugins())
    assert all("loaded" in line and "stabnet_register" in line for line in lines)


def test_plugins_verbose_shows_names_and_the_traceback_of_a_failure(tmp_path):
    (tmp_path / "broken_dist.py").write_text("raise RuntimeError('no luck today')\n")
    folder = tmp_path / "broken_dist-2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-dist\nVersion: 2.0\n")
    (folder / "entry_points.txt").write_text("[stabnet]\nbroken = broken_dist\n")
    environment = {"PYTHONPATH": str(tmp_path), "STABNET_STRICT": ""}
    brief = shell("plugins", **environment)
    assert brief.returncode == 0
    assert re.search(r"broken +broken-dist 2\.0 +failed .*no luck today", brief.stdout)
    assert "Traceback" not in brief.stdout
    verbose = shell("plugins", "--verbose", **environment)
    assert "Traceback" in verbose.stdout
    assert "  model lyadeq" in verbose.stdout
    strict = shell("list", **{**environment, "STABNET_STRICT": "1"})
    assert (strict.returncode, strict.stdout) == (1, "")
    assert strict.stderr.startswith("error: plugin 'broken' of broken-dist 2.0 failed to load")


# check


def test_check_passes_for_a_part_that_keeps_its_contract(run):
    status, out, err = run("check", "euler", "--verbose")
    assert (status, err) == (0, "")
    assert out.startswith("integrator euler: ")
    assert "passed" in out
    assert "failed" not in out


def test_check_fails_for_a_part_that_does_not(run, bracketed):
    status, out, _ = run("check", "bracketed", "--kind", "solver")
    assert status == 1
    assert re.search(r"^solver bracketed: .*\d failed", out)
    assert "  failed check_" in out


def test_check_refuses_to_check_nothing(run):
    check_refused(run("check", "nothing-like-it"), "no registered name matches")


# train, attack


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of one epoch on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "deq"
    main_and_stay(["train", "deq", *TINY, "--run-dir", str(folder), "--seed", "3"])
    return folder


def main_and_stay(arguments: list[str]) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code


def test_train_leaves_a_run_that_loads(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["data"]["name"] == "digits"
    assert config["training"]["seed"] == 3
    model = stabnet.load(trained / "model.safetensors")
    assert model.config["in_shape"] == [1, 8, 8]
    assert model.config["mean"] is not None


def test_train_prints_the_report_with_the_test_accuracy(run, tmp_path):
    status, out, _ = run("train", "deq", *TINY, "--run-dir", tmp_path / "run")
    assert status == 0
    assert out.strip() == (tmp_path / "run" / "report.md").read_text().strip()
    assert re.search(r"Test accuracy \*\*\d+\.\d+ %\*\*", out)


def test_train_passes_options_to_the_model(run, tmp_path):
    folder = tmp_path / "run"
    status, _, _ = run(
        "train", "deq", *TINY, "--run-dir", folder, "--backbone", "mlp",
        "--set", 'solver={"name": "picard", "max_evaluations": 7}', "--set", "head=linear",
        "--set", "mean=null", "--set", "std=null",
    )  # fmt: skip
    assert status == 0
    config = json.loads((folder / "config.json").read_text())["model"]
    assert config["backbone"]["name"] == "mlp"
    assert (config["solver"]["name"], config["solver"]["max_evaluations"]) == ("picard", 7)
    assert config["mean"] is None


def test_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone(
    run, tmp_path, trained
):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    status, _, _ = run("train", "deq", *TINY, "--run-dir", tmp_path / "again", "--seed", "3")
    assert status == 0
    assert torch.equal(torch.get_rng_state(), state)
    again = stabnet.load(tmp_path / "again" / "model.safetensors").state_dict()
    for name, tensor in stabnet.load(trained / "model.safetensors").state_dict().items():
        assert torch.equal(again[name], tensor)


def test_train_gives_the_objective_its_options(run, tmp_path):
    objective = '{"name": "cross_entropy", "label_smoothing": 0.1}'
    folder = tmp_path / "run"
    status, _, _ = run("train", "deq", *TINY, "--run-dir", folder, "--objective", objective)
    assert status == 0
    objective = json.loads((folder / "config.json").read_text())["objective"]
    assert objective["label_smoothing"] == 0.1


def test_resume_continues_a_finished_run_without_training_again(run, trained):
    status, out, _ = run("train", "deq", *TINY, "--run-dir", trained, "--seed", "3", "--resume")
    assert status == 0
    assert "Test accuracy" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lyadec"], "did you mean 'lyadeq'"),
        (["deq", "--data", "digit"], "did you mean 'digits'"),
        (["deq", "--data", "mnist", "--root", "nowhere-at-all"], "nowhere-at-all"),
        (["deq", "--backbone", "resnet"], "no backbone named 'resnet'"),
        (["deq", "--set", "widt=3"], "no option 'widt'"),
        (["deq", "--set", "width"], "write it as key=value"),
        (["deq", "--set", "a=1", "--set", "a=2"], "given twice"),
        (["deq", "--backbone", "mlp", "--set", "backbone=linear"], "given twice"),
        (["deq", "--set", "num_outputs=3"], "build the model with num_outputs=10"),
        (["deq", "--set", "num_classes=3"], "two spellings"),
        (["deq", "--epochs", "0"], "epochs=0"),
        (["deq", "--lr", "-1"], "learning_rate=-1"),
        (["deq", "--time-limit", "0"], "time_limit"),
        (["deq", "--objective", "mse"], "regression"),
        (
            ["deq", "--objective", '{"name": "cross_entropy", "smoothing": 1}'],
            "no option 'smoothing'",
        ),
        (["deq", "--resume"], "--run-dir"),
        (["deq", "--device", "nowhere"], "device='nowhere' cannot be used"),
    ],
)
def test_train_refuses_with_one_clean_message(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    check_refused(run("train", *arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_a_folder_in_use(run, trained):
    check_refused(run("train", "deq", *TINY, "--run-dir", trained), "not empty", "resume")


def test_attack_prints_and_keeps_the_report(run, trained):
    pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    status, out, _ = run("attack", trained, "--images", "20")
    assert status == 0
    assert "upper bound" in out
    kept = json.loads((trained / "robustness.json").read_text())
    assert kept["clean"]["images"] == 20
    assert [r["attack"] for r in kept["results"]] == ["ifgsm"] * 4 + ["pgd"] * 4


def test_attack_takes_a_bare_checkpoint_with_the_name_of_its_data(run, trained):
    pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    weights = trained / "model.safetensors"
    status, out, _ = run("attack", weights, "--data", "digits", "--images", "5")
    assert status == 0
    assert "ifgsm" in out


def test_attack_of_choice_is_reported_in_its_norm(run, trained):
    options = ("--set", "eps=0.5", "--set", "steps=3")
    status, out, _ = run("attack", trained, "--images", "9", "--attack", "pgd_l2", *options)
    assert status == 0
    assert "| pgd_l2 | l2 | 127.5/255 | 3 |" in out
    (row,) = json.loads((trained / "robustness.json").read_text())["results"]
    assert (row["attack"], row["norm"], row["eps"], row["images"]) == ("pgd_l2", "l2", 0.5, 9)
    check_refused(run("attack", trained, "--attack", "pgd_l3"), "pgd_l2")
    check_refused(run("attack", trained, "--attack", "pgd_l2", "--set", "r=1"), "no option 'r'")
    check_refused(run("attack", trained, "--set", "eps=1"), "name the attack")
    twice = ("--attack", "pgd_l2", "--set", "name=pgd")
    check_refused(run("attack", trained, *twice), "name it by --attack")


def test_attack_refuses_with_one_clean_message(run, trained, tmp_path):
    weights = trained / "model.safetensors"
    check_refused(run("attack", tmp_path / "nothing"), "no checkpoint at")
    check_refused(run("attack", weights), "--data")
    check_refused(run("attack", trained, "--protocol", "strong"), "no protocol 'strong'")
    check_refused(run("attack", trained, "--images", "0"), "at least one")
    check_refused(run("attack", trained, "--device", "nowhere"), "cannot be used here")
    (tmp_path / "foreign.safetensors").write_bytes(b"not a checkpoint")
    check_refused(run("attack", tmp_path / "foreign.safetensors", "--data", "digits"), "foreign")


def test_attack_without_the_extra_names_it(run, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    check_refused(run("attack", trained, "--images", "5"), 'pip install "stabnet[attacks]"')


def test_attack_refuses_data_that_the_model_was_not_made_for(run, tmp_path):
    def saved(name: str, **options: object) -> Path:
        return stabnet.save(stabnet.build(name, **options), tmp_path / f"{name}.safetensors")

    model = saved("deq", in_shape=(1, 8, 8), num_outputs=12)
    check_refused(run("attack", model, "--data", "digits"), "classes of 12", "digits has 10")
    model = saved("deq", in_shape=(3, 8, 8), num_outputs=10)
    check_refused(run("attack", model, "--data", "digits"), "(3, 8, 8)", "digits has (1, 8, 8)")
    part = saved("icnn", kind="potential", state_shape=(4,))
    check_refused(run("attack", part, "--data", "digits"), "which is a part")


# The whole


def test_usage_errors_have_no_traceback(run):
    status, _, err = run("train", "deq", "--epochs", "many")
    assert status == 2
    assert "--epochs" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_seeds_out_of_range_are_usage_errors(run, seed):
    for command in (["train", "deq"], ["attack", "nothing"]):
        status, _, err = run(*command, "--seed", seed)
        assert status == 2
        assert "--seed" in err


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"{stabnet.__version__}\n")
    status, out, _ = run("--help")
    assert status == 0
    for command in ("list", "info", "plugins", "check", "train", "attack"):
        assert command in out
