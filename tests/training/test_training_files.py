from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import stabnet
from stabnet.files import replacing, write_text
from stabnet.training.state import get_random_state, read_state, set_random_state, write_state

CPU = torch.device("cpu")


def draws():
    return [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.rand(3).tolist()]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")

    def interrupted():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_what_a_kill_left_is_written_over(tmp_path):
    (tmp_path / ".file.txt.partial").write_text("half of something much longer")
    write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "folder").write_text("a file in the way")
    with pytest.raises(stabnet.CheckpointError, match="cannot write"):
        write_text(tmp_path / "folder" / "file.txt", "new")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_clear_error_and_leaves_the_old_checkpoint(tmp_path):
    target = tmp_path / "state.pt"
    write_state(target, {"value": 1})
    (tmp_path / ".state.pt.partial").symlink_to("/dev/full")
    with pytest.raises(stabnet.CheckpointError, match="cannot write"):
        write_state(target, {"value": torch.zeros(10_000)})
    assert read_state(target)["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_random_states_survive_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    draws()  # leaves a spare gaussian in the generators of python and numpy
    write_state(tmp_path / "state.pt", {"random": get_random_state(CPU)})
    expected = draws()
    set_random_state(read_state(tmp_path / "state.pt")["random"], CPU)
    assert draws() == expected


def test_a_foreign_file_is_not_a_checkpoint(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(stabnet.CheckpointError, match="not a training checkpoint"):
        read_state(tmp_path / "state.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "state.pt")
    with pytest.raises(stabnet.CheckpointError, match="cannot be read"):
        read_state(tmp_path / "state.pt")
