"""Names registered in a script are as good as a plugin's."""

from __future__ import annotations

import pytest
import torch

import stabnet
from stabnet.errors import NameTakenError, PluginError, UnknownNameError
from stabnet.plugin import KINDS, Provider, Registrar


def register_bowl(**options):
    """Register a quadratic potential under the name ``mine``."""

    @stabnet.register.potential("mine", **options)
    class Bowl(stabnet.interfaces.Potential):
        """A quadratic bowl."""

        def __init__(self, *, state_shape, depth=1.0):
            super().__init__()
            self.state_shape = tuple(state_shape)
            self.depth = depth

        def forward(self, z, context=None):
            return self.depth * z.square().sum(-1)

    return Bowl


def test_potential_of_a_script_is_built_by_name(bare):
    bowl = register_bowl()
    built = stabnet.build("mine", kind="potential", state_shape=(2,), depth=2.0)
    assert type(built) is bowl
    assert built(torch.tensor([[1.0, 2.0]])).tolist() == [10.0]
    entry = stabnet.info("mine").entry
    assert (entry.provider.distribution, entry.summary) == ("script", "A quadratic bowl.")


def test_potential_of_a_script_is_used_within_a_model(bare):
    register_bowl()

    @stabnet.register.model("holder")
    def holder(*, in_shape=(2,), num_outputs=2, potential="mine"):
        model = torch.nn.Module()
        model.potential = stabnet.build(potential, kind="potential", state_shape=in_shape)
        return model

    model = stabnet.build("holder", potential={"name": "mine", "depth": 3.0})
    assert model.potential.depth == 3.0
    assert model._stabnet_config["potential"] == {"name": "mine", "depth": 3.0}


def test_name_taken_by_a_script_needs_override(bare):
    register_bowl()
    with pytest.raises(NameTakenError, match="potential 'mine' is registered by script"):
        register_bowl()
    second = register_bowl(override=True)
    assert stabnet.info("mine").entry.target is second


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Mine", {}, "lower case"),
        ("mine", {"reference": "a book"}, "not BibTeX"),
    ],
)
def test_bad_registration_of_a_script_is_refused_at_once(bare, name, options, message):
    with pytest.raises(PluginError, match=message):
        stabnet.register.potential(name, **options)(lambda *, state_shape: None)
    with pytest.raises(UnknownNameError):
        stabnet.info("mine")


def test_unknown_kind_in_a_script_is_refused(bare):
    with pytest.raises(PluginError, match="'potenzial'; did you mean 'potential'"):
        stabnet.register("potenzial", "mine")(lambda: None)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_method_for_every_kind(bare, kind):
    getattr(stabnet.register, kind)("thing")(lambda: None)
    assert [e.kind for e in stabnet.entries("thing")] == [kind]
    registrar = Registrar(Provider("somebody", "1.0", "main"))
    getattr(registrar, kind)("thing", "package:thing")
    assert [(e.kind, e.name) for e in registrar.entries] == [(kind, "thing")]


def test_the_decorated_factory_is_returned_unchanged(bare):
    def factory(*, params, lr=0.1): ...

    assert stabnet.register.optimizer("plain")(factory) is factory
