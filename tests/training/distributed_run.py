"""Run in each of several processes by the tests: evaluates, trains, and writes what came out."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from test_training_step_size import batches, euler, flow, make
from training_stand_ins import OPTIONS, Loss, TinyData, make_model

from stabnet.training import evaluate, fit, step_size_sensitivity
from stabnet.training.accelerator import make_accelerator


def weight(model):
    return {"weight": model.head.linear.weight.tolist()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    accelerator = make_accelerator("cpu", "no")
    data = TinyData()
    # 21 samples in batches of 4: six batches, the last of one sample.
    loader = data.loader("test", batch_size=4, shuffle=False, augment=False)
    evaluated = evaluate(make_model(), loader, Loss(), accelerator=accelerator)
    flows = make(flow(euler()))
    # 17 samples in batches of 4: the first process has three batches, the second two.
    refined = step_size_sensitivity(
        flows, batches(batch_size=4), samples=17, accelerator=accelerator
    )
    options = {**OPTIONS, "batch_size": 4, "objective": Loss(), "run_dir": folder / "run"}
    options |= {"monitor": weight, "monitor_every": 4}
    cut = fit(make_model(), data, **options, time_limit=1e-6)
    result = fit(make_model(), data, **options, resume=True)
    whole = fit(make_model(), data, **{**options, "run_dir": folder / "whole"})
    out = {
        "processes": accelerator.num_processes,
        "evaluated": evaluated,
        "refined": asdict(refined),
        "cut": cut.complete,
        "steps": len(cut.history),
        "resumed_like_whole": all(
            torch.equal(a, b)
            for a, b in zip(
                result.model.state_dict().values(), whole.model.state_dict().values(), strict=True
            )
        ),
        "weights": {name: t.tolist() for name, t in whole.model.state_dict().items()},
        "test": whole.test,
        "monitored": whole.monitored,
        "resumed_monitored": result.monitored,
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(out))
    torch.distributed.destroy_process_group()
