import dataclasses
import math
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.settings import (
    NAMES,
    SettingError,
    Settings,
    executed_config,
    of_config,
    read,
    table,
)
from tests.unit.reference import config

DEFAULTS = Settings()


def value_of(name: str, value: Any) -> Any:
    """The setting `name` when a configuration gives it `value`."""
    return getattr(read({f"cluster_{name}": value}, {}), name)


def from_environment(name: str, value: str) -> Any:
    return getattr(read({}, {f"GUNICORN_CLUSTER_{name.upper()}": value}), name)


# --- values -----------------------------------------------------------------------------------


def test_nothing_needs_to_be_set() -> None:
    assert read({}, {}) == DEFAULTS
    assert DEFAULTS.sticky == ("engineio", "cookie")
    assert DEFAULTS.cookie == "gunicorn_worker"
    assert DEFAULTS.dir is None


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("sticky", [], ()),
        ("sticky", "", ()),
        ("sticky", "cookie", ("cookie",)),
        ("sticky", ["engineio", "hash:ip"], ("engineio", "hash:ip")),
        ("sticky", ("hash:path:^/a,b",), ("hash:path:^/a,b",)),
        ("sticky", ["my.module:function"], ("my.module:function",)),
        ("cookie", "worker", "worker"),
        ("cookie", "__Host-worker", "__Host-worker"),
        ("threads", 1, 1),
        ("threads", 10_000, 10_000),
        ("threads", 50.0, 50),
        ("slots", 0, 0),
        ("slots", 1_000, 1_000),
        ("head_timeout", 0.1, 0.1),
        ("head_timeout", 5, 5.0),
        ("head_timeout", 3_600, 3_600.0),
        ("handoff_timeout", 0, 0.0),
        ("dir", None, None),
        ("dir", "", None),
        ("dir", "/run/app", "/run/app"),
        ("dir", Path("/run/app"), "/run/app"),
        ("dir", "here", os.path.abspath("here")),
    ],
)
def test_a_value_is_accepted(name: str, value: Any, parsed: Any) -> None:
    taken = value_of(name, value)
    assert taken == parsed
    assert type(taken) is type(parsed)


@pytest.mark.parametrize(
    ("name", "text", "parsed"),
    [
        ("sticky", "engineio, hash:header:X-Key ,", ("engineio", "hash:header:X-Key")),
        ("sticky", '["hash:path:^/a{1,2}"]', ("hash:path:^/a{1,2}",)),
        ("sticky", "[]", ()),
        ("cookie", "worker", "worker"),
        ("threads", "8", 8),
        ("slots", "16", 16),
        ("head_timeout", "2.5", 2.5),
        ("handoff_timeout", "1", 1.0),
        ("dir", "/run/app", "/run/app"),
    ],
)
def test_the_environment_says_it_in_words(name: str, text: str, parsed: Any) -> None:
    assert from_environment(name, text) == parsed


REFUSED = [
    ("sticky", ["cookies"]),
    ("sticky", "hash:host"),
    ("sticky", '["cookie"'),
    ("sticky", '["cookie", 1]'),
    ("sticky", [1]),
    ("sticky", None),
    ("sticky", 5),
    ("sticky", {"cookie"}),
    ("sticky", ["hash:path:("]),
    ("sticky", ["hash:path:a{9999999999999999999}"]),
    ("cookie", ""),
    ("cookie", "a b"),
    ("cookie", "a;b"),
    ("cookie", "a=b"),
    ("cookie", "é"),
    ("cookie", "a\n"),
    ("cookie", None),
    ("cookie", b"worker"),
    ("threads", 0),
    ("threads", -1),
    ("threads", 10_001),
    ("threads", 1.5),
    ("threads", True),
    ("threads", None),
    ("threads", "many"),
    ("threads", "1.5"),
    ("threads", [8]),
    ("threads", math.nan),
    ("threads", math.inf),
    ("slots", -1),
    ("slots", 1_001),
    ("head_timeout", 0),
    ("head_timeout", 0.09),
    ("head_timeout", 3_601),
    ("head_timeout", math.nan),
    ("head_timeout", math.inf),
    ("head_timeout", "inf"),
    ("head_timeout", "nan"),
    ("head_timeout", 10**400),
    ("handoff_timeout", -0.1),
    ("handoff_timeout", "soon"),
    ("dir", 5),
    ("dir", ["/run"]),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_is_refused(name: str, value: Any) -> None:
    """The message names the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as refused:
        value_of(name, value)
    message = str(refused.value)
    assert message.startswith(f"cluster_{name} = {value!r}: ")
    allowed = {field.name: field.metadata["allowed"] for field in dataclasses.fields(Settings)}
    assert message.endswith(f" Allowed: {allowed[name]}.")


def test_the_message_says_what_is_wrong() -> None:
    with pytest.raises(
        SettingError, match=r"^cluster_threads = 0: it is out of range\. Allowed: 1"
    ):
        value_of("threads", 0)
    with pytest.raises(SettingError, match=r"'hash:host' is not a rule\. Allowed: a list of engin"):
        value_of("sticky", ["cookie", "hash:host"])


@given(
    st.sampled_from(NAMES),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=10),
        st.binary(max_size=5),
        st.lists(st.text(max_size=5), max_size=2),
    ),
)
def test_any_value_is_accepted_or_refused(name: str, value: Any) -> None:
    try:
        taken = value_of(name, value)
    except SettingError:
        return
    assert value_of(name, taken) == taken


def test_settings_built_by_hand_are_checked_as_well() -> None:
    with pytest.raises(SettingError, match=r"^cluster_slots = -1: "):
        Settings(slots=-1)


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cluster_stiky", "cluster_sticky"),
        ("cluster_cookies", "cluster_cookie"),
        ("cluster_thread", "cluster_threads"),
        ("cluster_hand_off_timeout", "cluster_handoff_timeout"),
        ("cluster_headtimeout", "cluster_head_timeout"),
        ("cluster_Sticky", "cluster_sticky"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(written: str, meant: str) -> None:
    with pytest.raises(SettingError) as refused:
        read({written: 1}, {})
    assert str(refused.value).startswith(f"{written} is no setting. Did you mean {meant}? Known")
    for name in NAMES:
        assert f"cluster_{name}" in str(refused.value)


def test_a_name_that_is_near_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^cluster_zzz is no setting\. Known settings: cluster"):
        read({"cluster_zzz": 1}, {})


def test_an_unknown_variable_is_refused_by_its_own_name() -> None:
    with pytest.raises(
        SettingError, match=r"^GUNICORN_CLUSTER_STIKY is no setting\. Did you mean cluster_sticky\?"
    ):
        read({}, {"GUNICORN_CLUSTER_STIKY": "cookie"})


def test_other_names_are_of_no_concern() -> None:
    configuration = {"workers": 4, "clusters": 1, "my_cluster_x": 2, "cluster_tools": sys}
    environ = {"GUNICORN_CMD_ARGS": "x", "CLUSTER_STICKY": "x", "GUNICORN_CLUSTERS": "x"}
    assert read(configuration, environ) == DEFAULTS


@pytest.mark.parametrize(
    "variable",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_80_TCP",
        "PORT_80_TCP_PROTO",
        "PORT_80_TCP_PORT",
        "PORT_80_TCP_ADDR",
        "PORT_53_UDP_ADDR",
        "WEB_SERVICE_HOST",
        "WEB_PORT_8080_TCP_ADDR",
    ],
)
def test_what_kubernetes_puts_into_the_environment_is_ignored(variable: str) -> None:
    """For services called gunicorn-cluster and gunicorn-cluster-web."""
    assert read({}, {f"GUNICORN_CLUSTER_{variable}": "tcp://10.0.0.1:80"}) == DEFAULTS


# --- where they come from ---------------------------------------------------------------------


def test_the_environment_wins() -> None:
    settings = read(
        {"cluster_threads": 5, "cluster_cookie": "mine"}, {"GUNICORN_CLUSTER_THREADS": "6"}
    )
    assert (settings.threads, settings.cookie) == (6, "mine")


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that gunicorn makes of a configuration file."""
    module = ModuleType("__config__")
    monkeypatch.setitem(sys.modules, "__config__", module)
    return module


def test_a_configuration_file_is_read(
    executed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    vars(executed).update(cluster_threads=7, cluster_cookie="mine")
    monkeypatch.setenv("GUNICORN_CLUSTER_COOKIE", "theirs")
    settings = of_config(config(config="./gunicorn.conf.py"))
    assert (settings.threads, settings.cookie) == (7, "theirs")


def test_a_module_is_read_as_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_settings")
    vars(module).update(cluster_threads=7)
    monkeypatch.setitem(sys.modules, "my_settings", module)
    assert executed_config("python:my_settings")["cluster_threads"] == 7


def test_without_a_configuration_there_is_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "__config__", raising=False)
    assert executed_config(None) == {}
    assert executed_config("python:not.imported") == {}


# --- the table for people ---------------------------------------------------------------------


def test_the_table_has_every_setting() -> None:
    header, rule, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table().splitlines()]
    assert [cell.strip() for cell in header] == ["setting", "default", "allowed", "what for"]
    assert [cells[0].strip() for cells in rows] == [f"`cluster_{name}`" for name in NAMES]
    assert {len(cells) for cells in (header, rule, *rows)} == {4}


def test_the_table_names_units_and_defaults() -> None:
    assert "| 100 threads | 1 to 10000 |" in table()
    assert "| 10.0 seconds | 0.1 to 3600 |" in table()
    for field in dataclasses.fields(Settings):
        assert repr(field.default) in table()
