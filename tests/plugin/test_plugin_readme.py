"""What the README shows is run as it stands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from stabnet.plugin import KINDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILES = {
    text.partition("\n")[0].removeprefix("# "): text
    for language, text in BLOCKS
    if language in ("python", "toml") and text.startswith("# ")
}
EXAMPLES = [
    text for language, text in BLOCKS if language == "python" and text not in FILES.values()
]


def test_plugin_of_the_readme_works_as_an_installed_distribution(site):
    assert set(FILES) == {"stabnet_bowl/__init__.py", "stabnet_bowl/bowl.py", "pyproject.toml"}
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    (site.path / "stabnet_bowl").mkdir()
    for name in ("stabnet_bowl/__init__.py", "stabnet_bowl/bowl.py"):
        (site.path / name).write_text(FILES[name])
    assert project["entry-points"] == {"stabnet": {"bowl": "stabnet_bowl"}}
    site.add(project["name"], None)
    done = site.python(
        """
        import sys
        import stabnet
        print(stabnet.info("bowl").entry.provider, [r.status for r in stabnet.plugins()][-1])
        V = stabnet.build("bowl", kind="potential", state_shape=[2], depth=2.0)
        import torch
        value, gradient = V.value_and_gradient(torch.tensor([[1.0, 2.0]]))
        print(value.tolist(), gradient.tolist())
        from stabnet.cli import main
        main(["check", "bowl"])
        """,
        STABNET_STRICT="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["stabnet-bowl 1.0 loaded", "[10.0] [[4.0, 8.0]]"]
    assert done.stdout.split("\n")[2].startswith("potential bowl: ")
    assert "failed" not in done.stdout


def test_listing_a_plugin_of_the_readme_does_not_import_torch(site):
    (site.path / "stabnet_bowl").mkdir()
    (site.path / "stabnet_bowl/__init__.py").write_text(FILES["stabnet_bowl/__init__.py"])
    site.add("stabnet-bowl", None)
    done = site.python(
        "import stabnet, sys; stabnet.entries(); print('torch' in sys.modules)", STABNET_STRICT="1"
    )
    assert done.stdout.strip() == "False", done.stderr


def test_examples_of_the_readme_run(site):
    assert len(EXAMPLES) == 7
    code = (
        f"import os; os.chdir({str(site.path)!r})\n"
        + EXAMPLES[0]
        + (
            "assert logits.shape == (2, 10)\n"
            "assert again is not model and again.config == model.config\n"
            "assert torch.equal(again.eval()(x), model.eval()(x))\n"
        )
    )
    code += EXAMPLES[1] + "assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)\n"
    code += EXAMPLES[2] + (
        "assert solution.converged.all() and again.nfe == 1\n"
        "assert solution.backward.converged.all()\n"
    )
    code += EXAMPLES[3] + (
        "assert 0 < logs['violations'] <= 1 and states.shape == (3, 8, 10)\n"
        "assert model.dynamics.vector_field.first.weight.grad.any()\n"
    )
    code += EXAMPLES[4] + (
        "field = model.dynamics.vector_field\n"
        "value = field.potential(states)\n"
        "assert (value[1:] < value[:-1]).all() and field.vector_field.first.weight.grad.any()\n"
    )
    code += EXAMPLES[5] + (
        "assert 1 <= bound.features <= 1 + 1e-5\n"
        "assert certified.radius.shape == (8,) and (certified.radius >= 0).all()\n"
        "assert model.dynamics.stages[-2].weight.grad.any()\n"
    )
    code += EXAMPLES[6] + (
        "assert norms.shape == (34, 8) and (norms > 1 - 1e-5).all()\n"
        "assert gradients.shape == (35,) and 0.1 < gradients[0] / gradients[-1] < 10\n"
        "chain = model.dynamics.stages[1]\n"
        "assert chain.blocks[0].vector_field.potential.weight.grad.any()\n"
    )
    done = site.python(code, STABNET_STRICT="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "@" in done.stdout


def test_readme_has_the_two_commands_once_each():
    commands = [text.strip() for language, text in BLOCKS if language == "sh"]
    assert commands == [
        'pip install ".[attacks]" && stabnet train lyadeq',
        'pip install -e ".[dev]" && pytest',
    ]


def test_contributing_states_the_contract_of_every_kind():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for kind in KINDS.values():
        passed = ", ".join(f"`{name}`" for name in kind.contract) or "nothing"
        assert f"| `{kind.name}` | {passed} | {kind.returns} |" in text
