"""Hostile plugins: each is left out whole, is reported once, and takes no other down."""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
from pathlib import Path

import pytest

import stabnet
from stabnet.errors import NameTakenError, PluginError
from stabnet.plugin import Plugins
from stabnet.plugin.loader import discover

GOOD = """
import stabnet

@stabnet.hookimpl
def stabnet_register(registrar):
    registrar.model({name!r}, "nowhere.to.be_found:factory", summary="never imported")
"""


def hook(*lines: str) -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f"import stabnet\n@stabnet.hookimpl\ndef stabnet_register(registrar):\n{body}\n"


BAD = {
    "raises-on-import": ("raise RuntimeError('no luck today')", "RuntimeError: no luck today"),
    "exits-on-import": ("raise SystemExit(3)", "SystemExit: 3"),
    "syntax-error": ("def broken(:", "SyntaxError"),
    "needs-missing-module": ("import surely_not_installed", "No module named 'surely_not_ins"),
    "no-hook": ("def stabnet_register(registrar): ...", "implements no hook"),
    "misspelled-hook": (
        "import stabnet\n@stabnet.hookimpl\ndef stabnet_registr(registrar): ...",
        "unknown hook 'stabnet_registr'",
    ),
    "misspelled-argument": (
        "import stabnet\n@stabnet.hookimpl\ndef stabnet_register(registry): ...",
        "registry",
    ),
    "hook-raises": (hook("registrar.model('half', 'a:b')", "1 / 0"), "ZeroDivisionError"),
    "unknown-kind": (
        hook("registrar.model('half', 'a:b')", "registrar.register('potenzial', 'v', 'a:b')"),
        "'potenzial'; did you mean 'potential'",
    ),
    "unknown-method": (hook("registrar.layer('half', 'a:b')"), "layer"),
    "bad-target": (
        hook("registrar.model('half', 'a:b')", "registrar.model('other', 'a.b.c')"),
        "write a target as 'package.module:attribute'",
    ),
    "bad-name": (hook("registrar.model('Half Done', 'a:b')"), "lower case letters"),
    "bad-reference": (hook("registrar.model('half', 'a:b', reference='Smith')"), "not BibTeX"),
    "registers-twice": (
        hook("registrar.model('half', 'a:b')", "registrar.model('half', 'c:d')"),
        "registers model 'half' twice",
    ),
}


@pytest.fixture
def between(site):
    """Install a bad plugin between two good ones."""

    def install(name: str, source: str | None, **options):
        site.add("good-before", GOOD.format(name="before"))
        site.add(name, source, **options)
        site.add("good-after", GOOD.format(name="after"))
        return site

    return install


def check_left_out(plugins: Plugins, message: str) -> None:
    """The plugin in the middle failed with this message, and left nothing behind."""
    with pytest.warns(RuntimeWarning, match="was left out") as caught:
        names = [e.name for e in plugins.registry]
    assert len(caught) == 1
    assert names == ["after", "before"]
    assert [r.status for r in plugins.reports] == ["loaded", "failed", "loaded"]
    report = plugins.reports[1]
    assert message in report.error
    assert "\n" not in report.error
    assert "Traceback" in report.details
    assert report.names == 0
    assert report.error in plugins.failures()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(plugins.registry)) == 2  # reported once


@pytest.mark.parametrize("name", BAD)
def test_bad_plugin_is_left_out_whole_and_alone(between, name):
    source, message = BAD[name]
    check_left_out(between(name, source).plugins(), message)


@pytest.mark.parametrize("name", BAD)
def test_strict_mode_raises_and_names_the_distribution(between, name):
    source, message = BAD[name]
    plugins = between(name, source).plugins(STABNET_STRICT="1")
    with pytest.raises(PluginError) as caught:
        _ = plugins.registry
    assert message in str(caught.value)
    assert f"{name} 1.0" in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not_there_at_all", "No module named 'not_there_at_all'"),
        ("good_before:missing", "missing"),
        ("three words here", ""),
    ],
)
def test_entry_point_that_leads_nowhere_is_left_out(between, value, message):
    check_left_out(between("nowhere", None, value=value).plugins(), message)


def test_distribution_without_metadata_still_loads_and_is_called_unknown(between):
    plugins = between("damaged", GOOD.format(name="damaged"), metadata=False).plugins()
    assert [r.status for r in plugins.reports] == ["loaded"] * 3
    assert str(plugins.reports[1].provider) == "unknown"


def test_distribution_without_metadata_does_not_spoil_discovery(between):
    between("damaged", GOOD.format(name="damaged"), metadata=False)
    assert {"damaged", "good_before", "good_after"} <= {p.value for p in discover()}


def test_taken_name_names_both_distributions_and_rolls_back_the_whole_plugin(site):
    site.add("first-dist", GOOD.format(name="wanted"))
    site.add(
        "second-dist", hook("registrar.head('own', 'a:b')", "registrar.model('wanted', 'c:d')")
    )
    plugins = site.plugins()
    with pytest.warns(RuntimeWarning, match="second-dist"):
        registry = plugins.registry
    assert [(e.kind, e.name) for e in registry] == [("model", "wanted")]
    assert registry.get("model", "wanted").provider.distribution == "first-dist"
    error = plugins.reports[1].error
    assert error.startswith("NameTakenError")
    assert "first-dist 1.0" in error
    assert "second-dist 1.0" in error
    assert "override=True" in error


def test_one_name_may_serve_two_kinds(site):
    site.add("both", hook("registrar.head('linear', 'a:b')", "registrar.backbone('linear', 'c:d')"))
    assert len(list(site.plugins(STABNET_STRICT="1").registry)) == 2


def test_override_replaces_the_entry(site):
    site.add("first-dist", GOOD.format(name="wanted"))
    site.add("second-dist", hook("registrar.model('wanted', 'c:d', override=True)"))
    entry = site.plugins(STABNET_STRICT="1").registry.get("model", "wanted")
    assert (entry.provider.distribution, entry.target) == ("second-dist", "c:d")


def test_names_registered_while_importing_a_failing_plugin_are_rolled_back(site, bare, monkeypatch):
    site.add(
        "impatient",
        """
        import stabnet
        @stabnet.register.head("early")
        def early(*, in_features, num_outputs): ...
        raise RuntimeError("afterwards")
        """,
    )
    monkeypatch.setattr(bare, "_points", site.points())
    with pytest.warns(RuntimeWarning, match="afterwards"):
        assert stabnet.entries() == ()


def test_disabled_plugin_is_not_imported(site):
    site.add("good-before", GOOD.format(name="before"))
    site.add("noisy", "raise RuntimeError('imported')")
    plugins = site.plugins(STABNET_DISABLE_PLUGINS="noisy:main , other:thing", STABNET_STRICT="1")
    assert [r.status for r in plugins.reports] == ["loaded", "disabled"]
    assert [e.name for e in plugins.registry] == ["before"]


def test_disabling_one_plugin_of_a_distribution_leaves_its_other(site):
    site.add("pair", GOOD.format(name="one"), extra="second = pair_second\n")
    (site.path / "pair_second.py").write_text(GOOD.format(name="two"))
    plugins = site.plugins(STABNET_DISABLE_PLUGINS="pair:main")
    assert [e.name for e in plugins.registry] == ["two"]


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_mode_is_off_when_empty_or_zero(between, value):
    source, message = BAD["raises-on-import"]
    check_left_out(between("raises", source).plugins(STABNET_STRICT=value), message)


def test_failure_in_strict_mode_leaves_nothing_half_loaded(site):
    site.add("good-before", GOOD.format(name="before"))
    site.add("mended-later", "raise RuntimeError('not yet')")
    plugins = site.plugins(STABNET_STRICT="1")
    for _ in range(2):
        with pytest.raises(PluginError, match="not yet"):
            _ = plugins.registry
    (site.path / "mended_later.py").write_text(GOOD.format(name="mended") + "# mended\n")
    assert [e.name for e in plugins.registry] == ["before", "mended"]
    assert len(plugins.reports) == 2


def test_loading_reads_no_attribute_that_a_plugin_supplies_lazily(site):
    lazy = """
    def __getattr__(name):
        raise AssertionError(f"{name} was read")

    def __dir__():
        return ["stabnet_register", "Expensive"]
    """
    site.add("lazy", hook("registrar.model('lazy', 'a:b')") + "\n" + _dedent(lazy))
    assert [e.name for e in site.plugins(STABNET_STRICT="1").registry] == ["lazy"]


def _dedent(text: str) -> str:
    return "\n".join(line[4:] for line in text.splitlines())


def test_a_thread_never_sees_half_a_registry(site):
    slow = hook("import time", "registrar.model('slow', 'a:b')", "time.sleep(0.3)")
    site.add("slow-plugin", slow)
    plugins = site.plugins(STABNET_STRICT="1")
    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda: seen.append(len(list(plugins.registry)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]


def test_report_names_hook_version_and_number_of_names(site):
    site.add("good-before", GOOD.format(name="before"))
    (report,) = site.plugins().reports
    assert report.hooks == ("stabnet_register",)
    assert report.names == 1
    assert str(report.provider) == "good-before 1.0"
    assert report.module == "good_before"


def test_first_party_plugins_come_first(site):
    site.add("aaa-early-in-the-alphabet", GOOD.format(name="early"))
    order = [p.dist.name for p in discover() if p.dist]
    ours = order.count("stabnet")
    assert ours >= 5
    assert order[:ours] == ["stabnet"] * ours
    assert "aaa-early-in-the-alphabet" in order[ours:]


def test_entry_point_without_distribution_is_accepted(tmp_path: Path, monkeypatch):
    (tmp_path / "loose_plugin.py").write_text(GOOD.format(name="loose"))
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("main", "loose_plugin", "stabnet")
    assert [e.name for e in Plugins([point], {"STABNET_STRICT": "1"}).registry] == ["loose"]


def test_taken_name_error_is_a_plugin_error():
    assert issubclass(NameTakenError, PluginError)


# In an interpreter of their own, installed as real distributions are.


def test_broken_distribution_does_not_stop_stabnet(site):
    site.add("broken-dist", "raise RuntimeError('no luck today')")
    done = site.python("import stabnet; print([r.status for r in stabnet.plugins()][-1])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["failed"]
    assert done.stderr.count("no luck today") == 1
    assert "broken-dist 1.0" in done.stderr


def test_strict_environment_stops_a_broken_distribution(site):
    site.add("broken-dist", "raise RuntimeError('no luck today')")
    done = site.python("import stabnet; stabnet.list_models()", STABNET_STRICT="1")
    assert done.returncode == 1
    assert "plugin 'main' of broken-dist 1.0 failed to load" in done.stderr


def test_disabling_environment_keeps_a_broken_distribution_quiet(site):
    site.add("broken-dist", "raise RuntimeError('no luck today')")
    code = "import stabnet; stabnet.list_models()"
    done = site.python(code, STABNET_DISABLE_PLUGINS="broken-dist:main")
    assert (done.returncode, done.stderr) == (0, "")


def test_third_party_plugin_builds_the_part_of_another_by_name(site):
    site.add(
        "supplier",
        hook("registrar.head('theirs', 'supplier:head')")
        + "def head(*, in_features, num_outputs, gain=2.0):\n"
        + "    import types\n"
        + "    return types.SimpleNamespace(gain=gain, shape=(in_features, num_outputs))\n",
    )
    site.add(
        "consumer",
        "from stabnet import Registrar, build\n"
        + hook("registrar.model('mine', 'consumer:model')")
        + "def model(*, in_shape=(3,), num_outputs=2, head='theirs'):\n"
        + "    import types\n"
        + "    made = build(head, kind='head', in_features=in_shape[0], num_outputs=num_outputs)\n"
        + "    return types.SimpleNamespace(head=made)\n",
    )
    done = site.python(
        """
        import sys
        import stabnet
        model = stabnet.build("mine", head={"name": "theirs", "gain": 3.0})
        print(model.head.gain, *model.head.shape)
        print("torch" in sys.modules)
        """,
        STABNET_STRICT="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["3.0 3 2", "False"]
