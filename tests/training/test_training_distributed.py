from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from test_training_step_size import batches, euler, flow, make
from training_stand_ins import Loss, TinyData, make_model

from stabnet.training import evaluate, step_size_sensitivity


@pytest.mark.slow
def test_two_processes_evaluate_exactly_and_agree_on_weights_and_resume(tmp_path):
    script = Path(__file__).with_name("distributed_run.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["processes"] == 2
    assert not first["cut"]
    assert first["resumed_like_whole"]
    # 44 samples in batches of 4, shared by two processes: six steps an epoch.
    assert [r["step"] for r in first["monitored"]] == [0, 4, 8, 12, 16, 18]
    assert first["resumed_monitored"] == first["monitored"]
    lines = (tmp_path / "whole" / "monitor.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == first["monitored"]
    loader = TinyData().loader("test", batch_size=21, shuffle=False, augment=False)
    alone = evaluate(make_model(), loader, Loss())
    assert first["evaluated"] == pytest.approx(alone, rel=1e-6)
    refined = asdict(step_size_sensitivity(make(flow(euler())), batches(), samples=17))
    assert first["refined"].pop("step_sizes") == refined.pop("step_sizes")
    assert first["refined"] == pytest.approx(refined, rel=1e-6)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["training"]["processes"] == 2
