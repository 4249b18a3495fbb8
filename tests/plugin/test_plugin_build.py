"""Names and options are checked, throughout all nested parts, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stabnet
from stabnet.errors import InvalidOptionError, PluginError, UnknownNameError
from stabnet.plugin import CONFIG_ATTRIBUTE, KINDS, part_kind, undescribed

PAPER = "@article{{{key}, title = {{{key}}}}}"


class Part:
    """A part without torch: it remembers its options and knows the parts within it."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    def modules(self):
        yield self
        for value in list(vars(self).values()):
            if isinstance(value, Part):
                yield from value.modules()

    @property
    def config(self) -> dict[str, Any]:
        return getattr(self, CONFIG_ATTRIBUTE)


class House(list[str]):
    """The names of the parts that were built, in order."""

    def made(self, what: str, **options: Any) -> Part:
        self.append(what)
        return Part(**options)


@pytest.fixture
def house(bare) -> House:
    """A model ``toy`` with a backbone and a solver within its cell, all registered in a script."""
    built = House()
    register = stabnet.register

    @register.model("toy", reference=PAPER.format(key="toy"))
    def toy(
        *,
        in_shape=(3, 32, 32),
        num_outputs=10,
        mean=None,
        backbone="flat",
        cell={"name": "affine", "gain": 0.5},  # noqa: B006 - never written to
        rate=0.1,
        weights=None,
    ):
        """Build a toy."""
        backbone = stabnet.build(backbone, kind="backbone", in_shape=in_shape)
        cell = stabnet.build(
            cell, kind="cell", state_shape=(num_outputs,), feature_shape=backbone.out_shape
        )
        return built.made(
            "toy", in_shape=tuple(in_shape), num_outputs=num_outputs, rate=rate, mean=mean,
            backbone=backbone, cell=cell, weights=weights,
        )  # fmt: skip

    @register.backbone("flat", reference=[PAPER.format(key="flat"), PAPER.format(key="toy")])
    def flat(*, in_shape, width=4):
        return built.made("flat", in_shape=tuple(in_shape), width=width, out_shape=(width,))

    @register.cell("affine")
    def affine(*, state_shape, feature_shape, gain=1.0, inner_solver="sweep"):
        solver = stabnet.build(inner_solver, kind="solver")
        return built.made("affine", state_shape=state_shape, gain=gain, solver=solver)

    @register.solver("sweep", reference=PAPER.format(key="sweep"))
    def sweep(*, tolerance=1e-3, max_iterations=30):
        return built.made("sweep", tolerance=tolerance, max_iterations=max_iterations)

    @register.solver("strict_sweep")
    def strict_sweep(*, tolerance):
        return built.made("strict_sweep", tolerance=tolerance)

    return built


def refused(error: type[Exception], *fragments: str, house: House, **options: Any) -> None:
    """Building ``toy`` with these options fails with this message before anything is built."""
    with pytest.raises(error) as caught:
        stabnet.build("toy", **options)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert house == []


def test_default_parts_are_built(house):
    model = stabnet.build("toy")
    assert house == ["flat", "sweep", "affine", "toy"]
    assert (model.cell.gain, model.backbone.width) == (0.5, 4)


def test_options_of_nested_parts_arrive(house):
    model = stabnet.build(
        "toy",
        backbone={"name": "flat", "width": 7},
        cell={"name": "affine", "inner_solver": {"name": "sweep", "tolerance": 1e-6}},
    )
    assert model.backbone.width == 7
    assert model.cell.solver.tolerance == 1e-6
    assert model.cell.gain == 1.0  # the default of the cell, not that of the model's default


def test_a_built_part_is_taken_as_it_is(house):
    backbone = stabnet.build("flat", kind="backbone", in_shape=(3, 32, 32), width=9)
    assert stabnet.build("toy", backbone=backbone).backbone is backbone


# Unknown names and options.


def test_unknown_name_says_the_nearest_what_there_is_and_from_whom(house):
    with pytest.raises(UnknownNameError) as caught:
        stabnet.build("tou")
    assert str(caught.value) == (
        "there is no model named 'tou'; did you mean 'toy'?; available: toy (script)."
    )


def test_unknown_name_tells_which_plugins_failed(house, bare, site, monkeypatch):
    site.add("broken-dist", "raise RuntimeError('no luck today')")
    monkeypatch.setattr(bare, "_points", site.points())
    monkeypatch.setattr(bare, "_loaded", False)
    with (
        pytest.warns(RuntimeWarning, match="broken-dist"),
        pytest.raises(UnknownNameError, match=r"failed to load: main \(RuntimeError: no luck"),
    ):
        stabnet.build("theirs")


def test_name_of_another_kind_says_so(house):
    refused(UnknownNameError, "no backbone named 'sweep' ('sweep' is a solver)", house=house,
            backbone="sweep")  # fmt: skip


@pytest.mark.parametrize("call", [stabnet.build, stabnet.info])
def test_unknown_kind_says_the_nearest(house, call):
    with pytest.raises(UnknownNameError, match="no kind 'backbon'; did you mean 'backbone'"):
        call("flat", kind="backbon")


def test_unknown_kind_is_refused_for_a_built_part_too(house):
    with pytest.raises(UnknownNameError, match="no kind 'backbon'"):
        stabnet.build(Part(), kind="backbon")


def test_unknown_option_says_the_nearest_and_lists_all(house):
    refused(InvalidOptionError, "model 'toy' has no option 'raet'; did you mean 'rate'",
            "its options are in_shape, num_outputs, mean", house=house, raet=1)  # fmt: skip


def test_missing_option_is_named(house):
    with pytest.raises(InvalidOptionError, match="backbone 'flat' needs the option 'in_shape'"):
        stabnet.build("flat", kind="backbone")
    assert house == []


# Nested checks come before anything is built.


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        ("swep", UnknownNameError, "no solver named 'swep'; did you mean 'sweep'"),
        ({"name": "sweep", "toleranze": 1}, InvalidOptionError, "did you mean 'tolerance'"),
        ("strict_sweep", InvalidOptionError, "needs the option 'tolerance'"),
        ({"tolerance": 1}, InvalidOptionError, "a solver is given as a name, a dict with"),
        ({"name": "sweep", "kind": "head"}, InvalidOptionError, "a head was given where a solver"),
        (3, InvalidOptionError, "the option 'inner_solver' of cell 'affine' is given as a name"),
        (["sweep"], InvalidOptionError, "got ['sweep']"),
        (Part, InvalidOptionError, "got <class"),
    ],
)
def test_nested_parts_are_checked_before_anything_is_built(house, solver, error, message):
    cell = {"name": "affine", "inner_solver": solver}
    refused(error, message, house=house, cell=cell)


@pytest.mark.parametrize("part", [None, 3, 2.5, True, ["flat"], ("flat",), b"flat", Part])
def test_what_cannot_be_a_part_is_refused(house, part):
    with pytest.raises(InvalidOptionError, match="a backbone is given as a name, a dict"):
        stabnet.build(part, kind="backbone", in_shape=(3, 8, 8))


def test_options_for_a_built_part_are_refused(house):
    with pytest.raises(InvalidOptionError, match="width were given for a backbone that is already"):
        stabnet.build(Part(), kind="backbone", in_shape=(3, 8, 8), width=3)


def test_kind_that_contradicts_the_description_is_refused(house):
    with pytest.raises(InvalidOptionError, match="a model was given where a backbone is expected"):
        stabnet.build({"name": "toy", "kind": "model"}, kind="backbone")


# An option given twice.


def test_option_given_twice_is_refused(house):
    with pytest.raises(InvalidOptionError, match=r"given rate twice: 0\.2 and 0\.3"):
        stabnet.build({"name": "toy", "rate": 0.2}, rate=0.3)
    assert house == []


def test_conventional_spelling_given_twice_is_refused(house):
    with pytest.raises(InvalidOptionError, match="given num_classes twice: 10 and 5"):
        stabnet.build({"name": "toy", "num_classes": 10}, num_classes=5)


def test_same_value_given_twice_is_accepted_and_a_list_is_as_good_as_a_tuple(house):
    model = stabnet.build({"name": "toy", "in_shape": [1, 8, 8], "rate": 0.2}, in_shape=(1, 8, 8))
    assert (model.in_shape, model.rate) == ((1, 8, 8), 0.2)


def test_contract_given_within_a_part_must_agree_with_the_assembly(house):
    inside = {"name": "flat", "in_shape": [3, 32, 32]}
    assert stabnet.build("toy", backbone=inside).backbone.in_shape == (3, 32, 32)
    with pytest.raises(InvalidOptionError, match="backbone 'flat' was given in_shape twice"):
        stabnet.build("toy", backbone=inside, in_shape=(1, 8, 8))


# Conventional spellings.


@pytest.mark.parametrize(
    ("spelling", "in_shape", "num_outputs"),
    [
        ({"num_classes": 7}, (3, 32, 32), 7),
        ({"in_channels": 1}, (1, 32, 32), 10),
        ({"image_size": 8}, (3, 8, 8), 10),
        ({"image_size": (8, 16)}, (3, 8, 16), 10),
        ({"image_size": [8, 16], "in_channels": 2}, (2, 8, 16), 10),
        ({"image_size": np.int64(8), "num_classes": np.int64(3)}, (3, 8, 8), 3),
        ({"num_classes": 7, "num_outputs": 7}, (3, 32, 32), 7),
    ],
)
def test_conventional_spellings_are_translated(house, spelling, in_shape, num_outputs):
    model = stabnet.build("toy", **spelling)
    assert (model.in_shape, model.num_outputs) == (in_shape, num_outputs)
    assert model.config["in_shape"] == list(in_shape)
    assert model.config["num_outputs"] == num_outputs
    assert not spelling.keys() & model.config.keys() - {"num_outputs"}


def test_two_spellings_that_disagree_are_refused(house):
    refused(InvalidOptionError, "two spellings", house=house, num_classes=3, num_outputs=4)
    refused(InvalidOptionError, "already says what image_size", house=house, image_size=8,
            in_shape=(3, 8, 8))  # fmt: skip


def test_conventional_spellings_are_for_models_alone(house):
    with pytest.raises(InvalidOptionError, match="has no option 'image_size'"):
        stabnet.build("flat", kind="backbone", in_shape=(3, 8, 8), image_size=8)


def test_spellings_work_where_the_model_has_no_default_shape(house):
    @stabnet.register.model("shapeless")
    def shapeless(*, in_shape=None, num_outputs):
        return Part(in_shape=in_shape)

    built = stabnet.build("shapeless", num_outputs=2, image_size=8)
    assert built.in_shape == (3, 8, 8)


# The description of what was built.


def test_config_is_json_complete_and_rebuilds_the_model(house):
    model = stabnet.build("toy", num_classes=3, image_size=8, mean=(0.5, 0.5, 0.5), rate=0.25)
    config = json.loads(json.dumps(model.config, allow_nan=False))
    assert config == model.config
    assert config == {
        "name": "toy",
        "kind": "model",
        "in_shape": [3, 8, 8],
        "num_outputs": 3,
        "mean": [0.5, 0.5, 0.5],
        "backbone": {"name": "flat", "width": 4},
        "cell": {
            "name": "affine",
            "gain": 0.5,
            "inner_solver": {"name": "sweep", "tolerance": 1e-3, "max_iterations": 30},
        },
        "rate": 0.25,
        "weights": None,
        "providers": {
            "model/toy": "script",
            "backbone/flat": "script",
            "cell/affine": "script",
            "solver/sweep": "script",
        },
    }
    for again in (stabnet.build(config), stabnet.build(**config)):
        assert again.config == model.config
        assert (again.in_shape, again.rate, again.cell.gain) == ((3, 8, 8), 0.25, 0.5)


def test_config_of_a_part_that_was_built_before_is_its_description(house):
    backbone = stabnet.build("flat", kind="backbone", in_shape=(3, 32, 32), width=9)
    config = stabnet.build("toy", backbone=backbone).config
    assert config["backbone"] == {"name": "flat", "width": 9}
    assert stabnet.build(config).backbone.width == 9


def test_config_does_not_change_with_the_caller_s_own_dict(house):
    given = {"name": "flat", "width": 9}
    model = stabnet.build("toy", backbone=given)
    given["width"] = 1
    assert model.config["backbone"]["width"] == 9


def test_numbers_of_numpy_and_paths_become_plain(house):
    model = stabnet.build(
        "toy", num_classes=np.int64(3), rate=np.float32(0.5), weights=Path("w.safetensors")
    )
    described = json.loads(json.dumps(model.config))
    assert repr((described["num_outputs"], described["rate"])) == "(3, 0.5)"
    assert described["weights"] == "w.safetensors"


def test_unregistered_part_is_marked_in_the_config_and_found(house):
    model = stabnet.build("toy", backbone=Part(out_shape=(4,)))
    assert list(model.config["backbone"]) == ["unregistered"]
    json.dumps(model.config)
    where = undescribed(model.config)
    assert where is not None
    assert where.startswith("backbone (")
    assert "Part" in where
    assert undescribed(stabnet.build("toy").config) is None
    with pytest.raises(InvalidOptionError, match="unregistered"):
        stabnet.build(model.config)


# Factories that the checks could not see through.


def test_factory_with_keyword_arguments_is_refused(house):
    @stabnet.register.solver("vague")
    def vague(**options): ...

    with pytest.raises(PluginError, match=r"solver 'vague' of script takes \*\*options"):
        stabnet.build("vague", kind="solver")
    refused(PluginError, "names every option", house=house,
            cell={"name": "affine", "inner_solver": "vague"})  # fmt: skip


def test_factory_with_positional_parameters_is_refused(house):
    @stabnet.register.solver("ordered")
    def ordered(tolerance, /): ...

    with pytest.raises(PluginError, match="takes tolerance by position only"):
        stabnet.build("ordered", kind="solver", tolerance=1)

    @stabnet.register.solver("variadic")
    def variadic(*tolerances): ...

    with pytest.raises(PluginError, match=r"takes \*tolerances"):
        stabnet.build("variadic", kind="solver")


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if v.contract])
def test_factory_that_lacks_an_argument_of_the_contract_is_refused(house, kind):
    stabnet.register(kind, "ignorant")(lambda *, colour=None: None)
    with pytest.raises(PluginError, match=f"does not take {', '.join(KINDS[kind].contract)}"):
        stabnet.build("ignorant", kind=kind)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.to.be_found:thing", "No module named 'nowhere'"),
        ("faulty_module:missing", "missing"),
        ("faulty_module:NUMBER", "is int, not a factory"),
        ("exploding_module:thing", "went off"),
    ],
)
def test_target_that_cannot_be_used_is_a_fault_of_the_plugin(
    bare, site, monkeypatch, target, message
):
    site.add(
        "faulty",
        "import stabnet\n@stabnet.hookimpl\ndef stabnet_register(registrar):\n"
        f"    registrar.solver('faulty', {target!r})\n",
    )
    (site.path / "faulty_module.py").write_text("NUMBER = 3\n")
    (site.path / "exploding_module.py").write_text("raise RuntimeError('went off')\n")
    monkeypatch.setattr(bare, "_points", site.points())
    with pytest.raises(PluginError, match=message) as caught:
        stabnet.build("faulty", kind="solver")
    assert "fault of the plugin main" in str(caught.value)
    assert "faulty 1.0" in str(caught.value)


def test_missing_extra_is_not_called_a_fault_of_the_plugin(bare, site, monkeypatch):
    site.add(
        "optional",
        "import stabnet\n@stabnet.hookimpl\ndef stabnet_register(registrar):\n"
        "    registrar.solver('optional', 'optional_module:solver')\n",
    )
    (site.path / "optional_module.py").write_text(
        "from stabnet.errors import MissingExtraError\n"
        "raise MissingExtraError('pip install stabnet[attacks]')\n"
    )
    monkeypatch.setattr(bare, "_points", site.points())
    with pytest.raises(stabnet.errors.MissingExtraError, match=r"stabnet\[attacks\]"):
        stabnet.build("optional", kind="solver")


# Looking things up.


def test_cite_is_the_methods_used_each_once(house):
    text = stabnet.cite(stabnet.build("toy"))
    assert [text.count("{" + key + ",") for key in ("toy", "flat", "sweep")] == [1, 1, 1]
    other = {"name": "affine", "inner_solver": {"name": "strict_sweep", "tolerance": 1}}
    assert "{sweep," not in stabnet.cite(stabnet.build("toy", cell=other))


def test_cite_refuses_a_name(house):
    with pytest.raises(InvalidOptionError, match=r"stabnet\.info\('toy'\)\.entry\.reference"):
        stabnet.cite("toy")  # type: ignore[arg-type]


def test_info_tells_options_documentation_and_parts(house):
    found = stabnet.info("toy")
    assert found.entry.summary == "Build a toy."
    assert found.documentation == "Build a toy."
    assert found.signature.parameters["rate"].default == 0.1
    assert found.parts == {"backbone": ("flat",), "cell": ("affine",)}
    assert stabnet.info("sweep").entry.kind == "solver"


def test_info_of_an_unknown_name_looks_through_all_kinds(house):
    with pytest.raises(UnknownNameError, match="nothing named 'swep' is registered; did you mean"):
        stabnet.info("swep")


def test_info_asks_for_the_kind_where_the_name_is_ambiguous(house):
    stabnet.register.head("flat")(lambda *, in_features, num_outputs: None)
    with pytest.raises(UnknownNameError, match="'flat' is a backbone and a head; say which"):
        stabnet.info("flat")
    assert stabnet.info("flat", kind="head").entry.kind == "head"
    stabnet.register.model("flat")(lambda *, in_shape, num_outputs: None)
    assert stabnet.info("flat").entry.kind == "model"


def test_listing_takes_patterns(house):
    for name in ("deq", "lyadeq", "ham"):
        stabnet.register.model(name)(lambda *, in_shape, num_outputs: None)
    assert stabnet.list_models("*deq*") == ["deq", "lyadeq"]
    assert stabnet.list_models() == ["deq", "ham", "lyadeq", "toy"]
    assert stabnet.list_models("DEQ") == []
    assert [e.name for e in stabnet.entries("*sweep", kind="solver")] == ["strict_sweep", "sweep"]
    with pytest.raises(UnknownNameError, match="no kind 'modl'; did you mean 'model'"):
        stabnet.entries(kind="modl")


@pytest.mark.parametrize("kind", KINDS)
def test_option_named_for_a_kind_takes_a_part_of_that_kind(kind):
    assert part_kind(kind) == kind
    assert part_kind(f"other_{kind}") == kind
    assert part_kind(f"{kind}s") is None
    assert part_kind(f"other{kind}") is None


@pytest.mark.parametrize("size", [2, 2.0, "2"])
def test_a_shape_that_is_one_number_is_refused(size):
    for name, kind, option in (
        ("deq", "model", "in_shape"),
        ("mlp", "vector_field", "state_shape"),
    ):
        with pytest.raises(stabnet.InvalidOptionError, match=rf"{option}=.*such as \(64,\)"):
            stabnet.build(name, kind=kind, **{option: size})
