"""Settings: every layer in its place, every mistake named."""

from __future__ import annotations

import logging
import os
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from liteq.config import Settings
from liteq.exceptions import ConfigWarning, ImproperlyConfigured
from liteq.redaction import mask_url
from liteq.settings import SETTINGS
from liteq.settingsources import project_options
from liteq.settingvalues import Exchange, Queue, seconds


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory below which there is no pyproject.toml but the ones a test writes."""
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path


def settings(bare: Path, changes: Mapping[str, Any] | None = None, **environ: str) -> Settings:
    return Settings(changes, environ=environ, directory=str(bare))


def test_defaults_are_near_celery_s(bare: Path) -> None:
    conf = settings(bare)
    assert conf.task_serializer == "json"
    assert conf.accept_content == ("json",)
    assert conf.task_default_queue == "default"
    assert conf.task_acks_late is True
    assert conf.result_expires == 86_400
    assert conf.task_max_deliveries == 3
    assert conf.task_max_body_size == 1_048_576
    assert conf.worker_concurrency is None
    assert conf.worker_pool == "prefork"
    assert conf.timezone == "UTC"
    assert conf.source_of("timezone") == "default"


def test_every_default_passes_its_own_check() -> None:
    for row in SETTINGS.values():
        if row.default is not None:
            assert row.check(row.default) == row.default, row.name
        else:
            assert row.nullable, row.name
        assert row.doc.endswith((".", "…", '"', "}")), row.name


def test_nothing_is_read_before_it_is_needed(bare: Path) -> None:
    loads: list[Settings] = []
    conf = Settings(environ={}, directory=str(bare), on_load=loads.append)
    conf.config_from_object("no_such_module_anywhere")
    conf.task_time_limit = 5
    assert repr(conf) == "<Settings: not loaded>"
    with pytest.raises(ImproperlyConfigured, match="'no_such_module_anywhere' does not exist"):
        _ = conf.task_time_limit
    conf.config_from_object({})
    assert (conf.task_time_limit, loads) == (5, [conf])


def test_the_strongest_layer_wins(bare: Path) -> None:
    name, sources = "task_default_queue", []
    environ: dict[str, str] = {}
    conf = Settings(environ=environ, directory=str(bare))
    conf.add_defaults({name: "1"})
    sources.append((conf[name], conf.source_of(name)))
    (bare / "pyproject.toml").write_text('[tool.liteq]\ntask_default_queue = "2"')
    conf.config_from_object({})
    sources.append((conf[name], conf.source_of(name)))
    conf.config_from_object({name: "3"})
    sources.append((conf[name], conf.source_of(name)))
    conf[name] = "4"
    sources.append((conf[name], conf.source_of(name)))
    environ["LITEQ_TASK_DEFAULT_QUEUE"] = "5"
    conf.add_defaults(dict)
    sources.append((conf[name], conf.source_of(name)))
    conf.override({name: "6", "worker_pool": None})
    sources.append((conf[name], conf.source_of(name)))
    assert sources == [
        ("1", "add_defaults()"),
        ("2", str(bare / "pyproject.toml")),
        ("3", "configuration object"),
        ("4", "code"),
        ("5", "environment (LITEQ_TASK_DEFAULT_QUEUE)"),
        ("6", "command line"),
    ]
    del conf[name]
    assert conf.source_of("worker_pool") == "default"


def test_code_does_not_override_the_environment_once_loaded(bare: Path) -> None:
    conf = settings(bare, LITEQ_EAGER="1")
    assert conf.task_always_eager is True
    conf.task_always_eager = False
    assert conf.task_always_eager is True


def test_an_override_by_the_environment_is_logged(
    bare: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conf = settings(bare, {"broker_url": "redis://a"}, LITEQ_BROKER_URL="redis://b")
    with caplog.at_level(logging.INFO, "liteq.config"):
        assert conf.broker_url == "redis://b"
    assert "broker_url from the environment (LITEQ_BROKER_URL) overrides" in caplog.text


def test_our_variables_win_over_celery_s(bare: Path) -> None:
    environ = {"CELERY_BROKER_URL": "redis://c", "CELERY_RESULT_BACKEND": "redis://r"}
    conf = settings(bare, {"broker_url": "redis://code"}, **environ)
    assert (conf.broker_url, conf.result_backend) == ("redis://c", "redis://r")
    conf = settings(bare, LITEQ_BROKER_URL="redis://l", LITEQ_RESULT_URL="redis://s", **environ)
    assert (conf.broker_url, conf.result_backend) == ("redis://l", "redis://s")


def test_variables_are_read_as_their_setting_s_type(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:pw@host/0\n")
    conf = settings(
        bare,
        LITEQ_CONCURRENCY="4",
        LITEQ_WORKER_POOL="threads",
        LITEQ_TASK_ACKS_LATE="no",
        LITEQ_RESULT_EXPIRES="2.5",
        LITEQ_TASK_TIME_LIMIT="",
        LITEQ_IMPORTS="a, b.c",
        LITEQ_TASK_QUEUES="high,low",
        LITEQ_BROKER_TRANSPORT_OPTIONS='{"durability": "normal"}',
        LITEQ_BROKER_URL_FILE=str(tmp_path / "url"),
        LITEQ_APP="proj:app",
        LITEQ_WORKER_QUEUES="not ours to read",
    )
    assert conf.worker_concurrency == 4
    assert conf.worker_pool == "threads"
    assert conf.task_acks_late is False
    assert conf.result_expires == 2.5
    assert conf.task_time_limit is None
    assert conf.imports == ("a", "b.c")
    assert conf.task_queues == (Queue("high"), Queue("low"))
    assert conf.broker_transport_options == {"durability": "normal"}
    assert conf.broker_url == "redis://:pw@host/0"


def test_a_full_name_wins_over_a_short_one(bare: Path) -> None:
    conf = settings(bare, LITEQ_CONCURRENCY="4", LITEQ_WORKER_CONCURRENCY="5")
    assert conf.worker_concurrency == 5


def test_a_misspelt_variable_is_answered(bare: Path) -> None:
    with pytest.warns(ConfigWarning, match="LITEQ_BROKER_ULR: did you mean LITEQ_BROKER_URL"):
        len(settings(bare, LITEQ_BROKER_ULR="x"))


def test_a_secret_file_that_cannot_be_read_is_named(bare: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="LITEQ_BROKER_URL_FILE = 'nowhere'"):
        len(settings(bare, LITEQ_BROKER_URL_FILE="nowhere"))


# Mistakes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "inf", -1, timedelta.max])
@pytest.mark.parametrize(
    "name", [name for name, row in SETTINGS.items() if row.check is seconds]
)
def test_no_setting_in_seconds_is_without_end_or_below_zero(
    bare: Path, name: str, value: Any
) -> None:
    told = re.escape(f"setting {name} = {value!r} (from code): must be a number of seconds")

    with pytest.raises(ImproperlyConfigured, match=told):
        settings(bare, {name: value})[name]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("worker_concurrency", -1, "whole number of at least 1"),
        ("worker_concurrency", True, "whole number"),
        ("worker_concurrency", 1.5, "whole number"),
        ("task_time_limit", "soon", "number of seconds"),
        ("task_time_limit", -1, "0 or more"),
        ("task_time_limit", float("nan"), "0 or more"),
        ("task_time_limit", float("inf"), "up to"),
        ("task_soft_time_limit", "inf", "up to"),
        ("result_expires", timedelta.max, "up to"),
        ("result_expires", 10**400, "up to"),
        ("task_publish_retry_policy", {"interval_max": -1}, "its interval_max must be"),
        ("task_publish_retry_policy", '{"interval_step": Infinity}', "its interval_step must"),
        ("task_default_priority", 77, "from 0 to 9"),
        ("task_annotations", "annotations.Mine", "a dict by task"),
        ("task_annotations", {"tasks.add": "10/m"}, "a dict by task"),
        ("task_annotations", [7], "a dict by task"),
        ("task_routes", '{"tasks.add": ', "JSON object"),
        ("task_queues", '["a"', "list of queues"),
        ("task_queues", "[1]", "Queue objects, not 1"),
        ("accept_content", '["json"', "list of names"),
        ("task_always_eager", "maybe", "true or false"),
        ("task_default_queue", 7, "text"),
        ("task_default_queue", None, "text"),
        ("worker_pool_start_method", "forkserver", "one of fork, spawn"),
        ("beat_schedule", [], "must be a dict"),
        ("beat_schedule", "{", "JSON object"),
        ("imports", {"a": 1}, "list of names"),
        ("imports", [1], "list of names"),
        ("broker_url", 5, "URL"),
        ("timezone", "Mars/Olympus", "time zone's name"),
        ("timezone", 5, "time zone's name"),
        ("task_queues", 5, "list of queues"),
        ("task_queues", [5], "Queue objects, not 5"),
        ("worker_log_level", "loud", "one of"),
        ("task_default_rate_limit", True, "10/m"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    bare: Path, name: str, value: Any, message: str
) -> None:
    conf = settings(bare)
    with pytest.raises(ImproperlyConfigured, match=rf"setting {name} = .*{message}"):
        conf[name] = value
    assert conf[name] == SETTINGS[name].default


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("BROKER_CONNECTION_RETRY_ON_STARTUP", "broker_connection_retry_on_startup", False),
        ("CELERYBEAT_CRON_STARTING_DEADLINE", "beat_cron_starting_deadline", 5.0),
        ("CELERYD_LOG_DATEFMT", "worker_log_datefmt", "%H"),
        ("CELERYD_POOL_START_METHOD", "worker_pool_start_method", "spawn"),
        ("CELERYD_SOFT_SHUTDOWN_TIMEOUT", "worker_soft_shutdown_timeout", 9.0),
        ("CELERY_ACKS_ON_FAILURE_OR_TIMEOUT", "task_acks_on_failure_or_timeout", False),
        ("CELERY_DEFAULT_PRIORITY", "task_default_priority", 5),
        ("CELERY_INHERIT_PARENT_PRIORITY", "task_inherit_parent_priority", True),
        ("CELERY_MONGODB_BACKEND_SETTINGS", "mongodb_backend_settings", None),
        ("CELERY_REDIRECT_STDOUTS", "worker_redirect_stdouts", True),
        ("CELERY_REJECT_ON_WORKER_LOST", "task_reject_on_worker_lost", True),
        ("CELERY_STORE_EAGER_RESULT", "task_store_eager_result", True),
        ("CONTROL_QUEUE_TTL", "control_queue_ttl", 9.0),
        ("ENABLE_UTC", "enable_utc", False),
        ("RESULT_ACCEPT_CONTENT", "result_accept_content", ("pickle",)),
    ],
)
def test_an_old_name_of_celerys_is_understood(
    bare: Path, old: str, new: str, value: Any
) -> None:
    conf = settings(bare)
    conf.config_from_object({old: value})

    assert conf[new] == value
    assert conf.source_of(new) == "configuration object"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("control_queue_exclusive", True),
        ("database_engine_options", {"pool_pre_ping": True, "pool_recycle": 3600}),
        ("gcs_ttl", 0),
        ("result_backend_max_retries", float("inf")),
        ("worker_consumer", "celery.worker.consumer:Consumer"),
        ("worker_hijack_root_logger", True),
        ("worker_hijack_root_logger", False),
        ("worker_redirect_stdouts", True),
    ],
)
def test_nothing_is_said_of_celerys_default_or_of_what_holds_here(
    bare: Path, name: str, value: Any
) -> None:
    conf = settings(bare, {name: value})

    assert conf[name] == value


@pytest.mark.parametrize("name", ["database_url", "s3_bucket", "cassandra_servers"])
def test_a_setting_of_a_backend_of_celerys_is_known_and_has_no_effect(
    bare: Path, name: str
) -> None:
    with pytest.warns(ConfigWarning, match=f"no effect in liteq: {name}"):
        settings(bare, {name: "x"})


def test_the_source_of_a_wrong_value_is_named_and_secrets_are_not_shown(bare: Path) -> None:
    conf = settings(bare, LITEQ_TASK_TIME_LIMIT="x")
    with pytest.raises(ImproperlyConfigured, match=r"from environment \(LITEQ_TASK_TIME_LIMI"):
        len(conf)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("task_time_limit", timedelta(minutes=1), 60.0),
        ("result_expires", None, None),
        ("worker_concurrency", "auto", None),
        ("worker_concurrency", "3", 3),
        ("accept_content", '["json", "yaml"]', ("json", "yaml")),
        ("task_annotations", '{"*": {"rate_limit": "9/s"}}', {"*": {"rate_limit": "9/s"}}),
        ("task_default_priority", "9", 9),
        ("task_queues", '["a", "b"]', (Queue("a"), Queue("b"))),
        ("task_queues", '{"a": {"max_length": 5}}', (Queue("a"),)),
        ("task_routes", "project.routes", "project.routes"),
        ("task_routes", '{"tasks.add": "default"}', {"tasks.add": "default"}),
        ("task_routes", '[{"tasks.*": {"queue": "q"}}]', [{"tasks.*": {"queue": "q"}}]),
        ("timezone", UTC, UTC),
        ("timezone", "Europe/Berlin", "Europe/Berlin"),
        ("broker_url", ["redis://a", "redis://b"], ["redis://a", "redis://b"]),
        ("broker_url", Path("/x/y.db"), "/x/y.db"),
        ("include", "one", ("one",)),
        ("accept_content", {"json"}, ("json",)),
        ("worker_log_level", "debug", "DEBUG"),
        ("worker_log_level", 10, 10),
    ],
)
def test_what_celery_accepts_is_understood(
    bare: Path, name: str, value: Any, kept: Any
) -> None:
    conf = settings(bare, {name: value})
    assert conf[name] == kept


def test_an_unknown_name_is_kept_with_a_suggestion(bare: Path) -> None:
    conf = settings(bare)
    with pytest.warns(ConfigWarning, match="'task_time_limt': did you mean 'task_time_limit'"):
        conf.task_time_limt = 5
    assert conf.task_time_limt == 5
    conf.task_time_limt = 6  # said once


def test_the_warning_points_at_the_user_s_line(bare: Path) -> None:
    conf = settings(bare)
    with pytest.warns(ConfigWarning) as caught:
        conf.update(xyzzy=5)
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name]


def test_reading_a_name_that_does_not_exist_suggests_one(bare: Path) -> None:
    conf = settings(bare)
    with pytest.raises(AttributeError, match="did you mean 'broker_url'"):
        _ = conf.broker_ulr
    with pytest.raises(KeyError, match="did you mean 'broker_url'"):
        _ = conf["broker_ulr"]
    assert conf.get("nothing", 5) == 5
    assert not hasattr(conf, "__wrapped__")
    with pytest.raises(AttributeError, match="method"):
        conf.table = 5


def test_settings_without_effect_are_named_once_and_only_if_changed(bare: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        conf = settings(bare)
        conf.config_from_object(
            {
                "worker_prefetch_multiplier": 1,
                "worker_disable_prefetch": True,
                "worker_state_db": None,
            }
        )
        len(conf)
        conf.config_from_object({"worker_prefetch_multiplier": 1})
        len(conf)
    (only,) = [str(w.message) for w in caught]
    assert only.startswith("no effect in liteq: worker_prefetch_multiplier, worker_disable_pre")


# Objects and namespaces


def module(name: str = "celeryconfig", **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    return made


def test_settings_come_from_modules_classes_objects_and_names(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config:
        task_time_limit = 7

    sources = [
        module(task_time_limit=7, os=os, helper=len, _private=1, DEBUG=True),
        Config,
        Config(),
        SimpleNamespace(task_time_limit=7),
        "celeryconfig_for_test",
        "celeryconfig_for_test:Nested",
    ]
    named = module(task_time_limit=7, Nested=type("Nested", (), {"task_time_limit": 7}))
    monkeypatch.setitem(sys.modules, "celeryconfig_for_test", named)
    for source in sources:
        conf = settings(bare)
        conf.config_from_object(source)
        assert conf.without_defaults() == {"task_time_limit": 7}


def test_own_settings_in_a_module_are_kept_as_they_are(bare: Path) -> None:
    code = "from __future__ import annotations\ndatabase_name = 'h'\ntask_time_limi = 7\n"
    config = module()
    exec(code, config.__dict__)
    conf = settings(bare)
    conf.config_from_object(config)

    with pytest.warns(
        ConfigWarning, match="'task_time_limi'.*did you mean 'task_time_limit'"
    ) as said:
        assert conf.database_name == conf["database_name"] == conf.get("database_name") == "h"
    assert len(said) == 1
    assert conf.without_defaults() == {"database_name": "h", "task_time_limi": 7}


def test_a_module_in_the_current_directory_is_found(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "conf_in_cwd.py").write_text("task_time_limit = 9")
    (bare / "conf_broken.py").write_text("import no_such_module")
    monkeypatch.chdir(bare)
    path = list(sys.path)
    conf = settings(bare, FROM="conf_in_cwd")
    assert conf.config_from_envvar("FROM")
    assert conf.task_time_limit == 9
    assert sys.path == path
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        conf.config_from_object("conf_broken", silent=True, force=True)


def test_a_missing_source_may_be_silent(bare: Path) -> None:
    conf = settings(bare)
    assert conf.config_from_object("no_such_config", silent=True, force=True) is False
    assert conf.task_time_limit is None
    assert conf.config_from_envvar("NOT_SET", silent=True) is False
    with pytest.raises(ImproperlyConfigured, match="NOT_SET is not set"):
        conf.config_from_envvar("NOT_SET")
    with pytest.raises(ImproperlyConfigured, match="does not exist"):
        conf.config_from_object("no_such_config", force=True)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("celeryconfig_for_test:nope", "celeryconfig_for_test has no attribute 'nope'"),
        ("celeryconfig_for_test:nested.nope", "dict has no attribute 'nope'"),
    ],
)
def test_a_source_that_its_module_has_not_is_an_error_that_names_it(
    name: str, why: str, silent: bool, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "celeryconfig_for_test", module("celeryconfig_for_test", nested={})
    )
    conf = settings(bare)
    conf.config_from_object(name, silent=silent)

    with pytest.raises(ImproperlyConfigured) as caught:
        conf.task_time_limit  # noqa: B018 (it loads)

    assert str(caught.value) == f"the configuration object {name!r} does not exist: {why}"


def test_old_names_are_understood(bare: Path) -> None:
    conf = settings(bare)
    conf.config_from_object(
        module(
            BROKER_URL="redis://x",
            CELERY_RESULT_BACKEND="redis://y",
            CELERYD_CONCURRENCY=3,
            CELERYBEAT_SCHEDULE={},
            CELERY_ALWAYS_EAGER=True,
            CELERY_TASK_RESULT_EXPIRES=5,
            CELERYD_TASK_TIME_LIMIT=6,
            CELERY_TIMEZONE="UTC",
        )
    )
    assert conf.without_defaults() == {
        "broker_url": "redis://x",
        "result_backend": "redis://y",
        "worker_concurrency": 3,
        "beat_schedule": {},
        "task_always_eager": True,
        "result_expires": 5,
        "task_time_limit": 6,
        "timezone": "UTC",
    }
    assert conf["CELERYD_CONCURRENCY"] == conf.BROKER_URL[-1:].count("x") + 2
    assert "CELERY_ALWAYS_EAGER" in conf
    assert 5 not in conf


def test_old_and_new_names_together_are_refused_with_the_renames(bare: Path) -> None:
    conf = settings(bare)
    conf.config_from_object({"task_time_limit": 5, "CELERY_ALWAYS_EAGER": True})
    with pytest.raises(ImproperlyConfigured, match="CELERY_ALWAYS_EAGER -> task_always_eager"):
        len(conf)


def test_a_namespace_selects_and_strips(bare: Path) -> None:
    django = module(
        CELERY_BROKER_URL="redis://x",
        CELERY_TASK_TIME_LIMIT=5,
        CELERY_ALWAYS_EAGER=True,
        celery_task_default_queue="q",
        DEBUG=True,
        task_soft_time_limit=1,
        BROKER_URL="other",
    )
    conf = settings(bare)
    conf.config_from_object(django, namespace="CELERY")
    assert conf.without_defaults() == {
        "broker_url": "redis://x",
        "task_time_limit": 5,
        "task_always_eager": True,
        "task_default_queue": "q",
    }


class _Leaving:
    """Settings as Django has them: one that is on its way out says so when it is read."""

    CELERY_TASK_TIME_LIMIT = 5
    TIME_ZONE = "America/Chicago"

    @property
    def EMAIL_BACKEND(self) -> str:  # noqa: N802 (Django's name)
        raise AssertionError("read, and it is none of ours")


@pytest.mark.parametrize("namespace", ["CELERY", None])
def test_what_is_no_setting_of_ours_is_not_read(bare: Path, namespace: str | None) -> None:
    conf = settings(bare)
    conf.config_from_object(_Leaving(), namespace=namespace)
    assert conf.timezone == "America/Chicago"
    assert conf.without_defaults()["task_time_limit"] == 5


@pytest.mark.parametrize(
    ("source", "namespace"),
    [
        ({"task_tiem_limit": 5}, None),
        (SimpleNamespace(task_tiem_limit=5), None),
        ({"CELERY_TASK_TIEM_LIMIT": 5}, "CELERY"),
    ],
)
def test_a_typo_in_an_object_is_answered(
    bare: Path, source: Any, namespace: str | None
) -> None:
    conf = settings(bare)
    conf.config_from_object(source, namespace=namespace)
    with pytest.warns(ConfigWarning, match="'task_tiem_limit': did you mean 'task_time_limit'"):
        len(conf)
    assert conf.task_tiem_limit == 5


def test_words_of_the_command_line(bare: Path) -> None:
    conf = settings(bare)
    conf.config_from_cmdline(["worker.concurrency=3", "task_time_limit=5"])
    conf.config_from_cmdline(["pool=solo"], namespace="worker")
    assert (conf.worker_concurrency, conf.task_time_limit, conf.worker_pool) == (3, 5, "solo")
    with pytest.raises(ImproperlyConfigured, match="key=value"):
        conf.config_from_cmdline(["oops"])


# Project files


def test_the_nearest_project_file_counts(bare: Path) -> None:
    inner = bare / "a" / "b"
    inner.mkdir(parents=True)
    (bare / "pyproject.toml").write_text(
        '[tool.liteq]\napp = "proj:app"\ntask-time-limit = 5\n'
        '[tool.liteq.beat_schedule.hourly]\ntask = "t"\n'
    )
    conf = Settings(environ={}, directory=str(inner))
    assert conf.task_time_limit == 5
    assert conf.beat_schedule == {"hourly": {"task": "t"}}
    assert project_options(str(inner))[0]["app"] == "proj:app"
    (bare / "a" / "liteq.toml").write_text("task_time_limit = 6")
    conf = Settings(environ={}, directory=str(inner))
    assert conf.task_time_limit == 6
    assert conf.source_of("task_time_limit") == str(bare / "a" / "liteq.toml")


@pytest.mark.parametrize(
    "text",
    [
        "[tool.liteq]\ntask_time_limit = 5",
        "[ tool . liteq ] # here\ntask_time_limit = 5",
        "['tool'.\"liteq\"]\ntask_time_limit = 5",
        "tool.liteq.task_time_limit = 5",
        "tool = {liteq = {task_time_limit = 5}}",
        "[tool]\nother = 3\nliteq.task_time_limit = 5",
    ],
)
def test_a_project_file_may_be_written_in_any_way(bare: Path, text: str) -> None:
    (bare / "pyproject.toml").write_text(text)
    assert settings(bare).task_time_limit == 5


def test_a_project_file_without_settings_is_not_parsed(bare: Path) -> None:
    """It takes longer than all the rest that a first call does."""
    text = '[project]\ndependencies = ["liteq-queue>=1"]\n[tool.ruff]\nsrc = ["liteq"]\n'
    (bare / "pyproject.toml").write_text(text + "no TOML")
    assert settings(bare).task_time_limit is None


def test_a_damaged_project_file_is_named(bare: Path) -> None:
    (bare / "pyproject.toml").write_text("[tool.liteq\n")
    with pytest.raises(ImproperlyConfigured, match=r"pyproject\.toml is not valid TOML"):
        len(settings(bare))
    (bare / "pyproject.toml").write_text("[tool.other\n")  # none of our business
    assert settings(bare).task_time_limit is None


# Celery's views


def test_the_views_of_celery(bare: Path) -> None:
    conf = settings(bare, {"task_always_eager": True, "worker_concurrency": 2})
    assert conf.changes == {"task_always_eager": True, "worker_concurrency": 2}
    assert conf.find_value_for_key("always_eager") is True
    assert conf.find_value_for_key("concurrency", "worker") == 2
    assert conf.find_value_for_key("timezone") == "UTC"
    with pytest.raises(KeyError):
        conf.find_value_for_key("no_such")
    assert conf.value_set_for("task_always_eager")
    assert not conf.value_set_for("timezone")
    assert conf.setdefault("timezone", "Europe/Rome") == "UTC"
    assert conf.pop("worker_concurrency") == 2
    assert conf.worker_concurrency is None
    assert conf.humanize() == "task_always_eager: True"
    assert set(conf) == set(conf.keys()) == set(SETTINGS)
    assert len(conf.table(with_defaults=True)) == len(conf) == len(SETTINGS)
    assert dict(conf.items())["timezone"] == "UTC"
    del conf.task_always_eager
    assert conf.table() == {}


def test_tables_hide_secrets(bare: Path) -> None:
    with pytest.warns(ConfigWarning):
        conf = settings(
            bare,
            {
                "broker_url": "redis://user:hunter2@host:1/0?password=hunter2&x=1",
                "result_backend": ["redis://:hunter2@a", "redis://b"],
                "broker_transport_options": {"sentinel_kwargs": {"password": "hunter2"}},
                "redis_password": "hunter2",
                "security_key": "hunter2",
                "my_api_key": "hunter2",
                "task_default_routing_key": "routes",
            },
        )
    text = conf.humanize()
    assert "hunter2" not in text
    assert "redis://user:********@host:1/0?password=********&x=1" in text
    assert "routes" in text
    assert "hunter2" in conf.humanize(censored=False)
    assert "hunter2" not in repr(conf)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/a.db", "sqlite:////srv/a.db"),
        ("redis://u:p@h", "redis://u:********@h"),
        ("redis://u:p:/w@h", "redis://u:********@h"),
        ("at redis://:p@h and amqp://a:b@c", "at redis://:********@h and amqp://a:********@c"),
        ("redis://h/0?x=1", "redis://h/0?x=1"),
    ],
)
def test_urls_lose_their_passwords(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_a_mutable_default_belongs_to_one_app(bare: Path) -> None:
    one, two = settings(bare), settings(bare)
    one.beat_schedule["x"] = {"task": "t"}
    one.task_time_limit = 5  # does not load anew
    assert "x" in one.beat_schedule
    assert two.beat_schedule == {}


def test_a_copy_keeps_what_code_assigned(bare: Path) -> None:
    conf = settings(bare, {"task_time_limit": 5})
    assert pickle.loads(pickle.dumps(conf)).changes == {"task_time_limit": 5}


def test_an_exchange_is_taken_and_one_that_would_do_more_is_warned_about(bare: Path) -> None:
    mail = Exchange("mail")
    conf = settings(bare, {"task_queues": [Queue("mail", mail, routing_key="mail")]})
    assert conf.task_queues[0].exchange is mail
    assert repr(mail) == "Exchange('mail')"

    with pytest.warns(ConfigWarning, match="'news' of type 'fanout' has no effect"):
        Exchange("news", type="fanout", durable=True)


def test_a_queue_that_would_have_had_copies_for_all_workers_is_refused(bare: Path) -> None:
    class Fanout:
        name, type = "news", "fanout"

    class KombuBroadcast:  # its name is made up, and what calls are routed to is its alias
        name, alias, exchange = "bcast.5f3c", "news", Fanout()

    given: list[Any] = [
        [KombuBroadcast()],
        [Queue("news", Fanout())],
        {"news": {"exchange": "news", "exchange_type": "fanout"}},
    ]
    for queues in given:
        with pytest.raises(ImproperlyConfigured, match=r"'news'.*@control_command"):
            _ = settings(bare, {"task_queues": queues}).task_queues


def test_queues_may_be_given_in_every_form(bare: Path) -> None:
    class KombuQueue:
        name, exchange, routing_key = "k", "x", "r"

    conf = settings(bare)
    conf.task_queues = ["a", Queue("b", "x", routing_key="b", max_priority=5), KombuQueue()]
    assert [queue.name for queue in conf.task_queues] == ["a", "b", "k"]
    assert conf.task_queues[1].options == {"max_priority": 5}
    assert conf.task_queues[2].routing_key == "r"
    conf.task_queues = {"c": {"exchange": "x"}, "d": None}
    assert [str(queue) for queue in conf.task_queues] == ["c", "d"]
    assert {Queue("a"): 1}[Queue("a", "other")] == 1
    assert Queue("a") != "a"
    assert repr(Queue("a")) == "Queue('a')"
    with pytest.raises(ImproperlyConfigured, match="needs a name"):
        Queue("")
