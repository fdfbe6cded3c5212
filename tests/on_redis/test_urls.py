"""What URLs and options mean, and that no password shows."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import uncovered

from liteq import Liteq
from liteq.brokers import connect
from liteq.brokers.redis import RedisBroker
from liteq.brokers.redis_pulse import server_of
from liteq.brokers.redis_url import parse
from liteq.exceptions import ConfigWarning, ImproperlyConfigured


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"hosts": (("localhost", 6379),), "db": 0, "tls": None}),
        ("redis://h", {"hosts": (("h", 6379),)}),
        ("redis://h:7/3", {"hosts": (("h", 7),), "db": 3}),
        ("redis://h?db=4", {"db": 4}),
        ("redis://:pw@a:1,b/0", {"hosts": (("a", 1), ("b", 6379)), "password": "pw"}),
        ("redis://[::1]:7/0", {"hosts": (("::1", 7),)}),
        ("redis://:p%40ss@h", {"username": None, "password": "p@ss"}),
        ("redis://me:pw@h", {"username": "me", "password": "pw"}),
        ("valkey://h", {"hosts": (("h", 6379),), "tls": None}),
        ("rediss://h", {"tls": {}}),
        ("valkeys://h", {"tls": {}}),
        ("rediss://h?ssl_ca_certs=/ca.pem", {"tls": {"ssl_ca_certs": "/ca.pem"}}),
        ("unix:///run/r.sock", {"path": "/run/r.sock", "db": 0}),
        ("unix:///run/r.sock?db=2", {"path": "/run/r.sock", "db": 2}),
        ("unix://me:pw@/run/r.sock", {"path": "/run/r.sock", "username": "me"}),
        ("redis+socket:///run/r.sock?virtual_host=5", {"path": "/run/r.sock", "db": 5}),
        (
            "redis+sentinel://a:1,b/shop/2",
            {"hosts": (("a", 1), ("b", 26379)), "service": "shop", "db": 2},
        ),
        (
            "redis+sentinel://:pw@a/shop?sentinel_password=s",
            {"password": "pw", "sentinel_password": "s"},
        ),
        ("rediss+sentinel://a/shop", {"service": "shop", "tls": {}}),
        (
            "rediss://h?ssl_cert_reqs=CERT_NONE&ssl_check_hostname=False",
            {"tls": {"ssl_cert_reqs": "none", "ssl_check_hostname": False}},
        ),
        (
            "rediss://h?ssl_min_version=TLSv1.3",
            {"tls": {"ssl_min_version": ssl.TLSVersion.TLSv1_3}},
        ),
        (
            "sentinel://a:1;sentinel://b:2/0?master_name=shop",
            {"hosts": (("a", 1), ("b", 2))},
        ),
    ],
)
def test_a_url_says_where_the_server_is(url: str, expected: dict[str, Any]) -> None:
    place = parse(url, master_name="shop")

    assert {name: getattr(place, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h/shop", "the database must be a number"),
        ("redis://h:port/0", "cannot be understood"),
        ("redis://a/0;redis://b/0", "one URL for each server is for sentinels"),
        ("redis+sentinel://a/0", "does not say which service"),
        ("unix://r.sock", "needs its full path"),
        ("rediss://h?ssl_cert_reqs=maybe", "one of none, optional, required, not 'maybe'"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false, not 'maybe'"),
        ("rediss://h?ssl_min_version=1.3", "one of TLSv1, .*, not '1.3'"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_without_its_password(
    url: str, message: str
) -> None:
    secret = url.replace("://", "://me:hunter2@")

    with pytest.raises(ImproperlyConfigured, match=message) as raised:
        parse(secret)

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hunter2/x@h/0",
        "redis://me:1/hunter2@h/0",
        "redis://me:hunter2?x@h/0",
        "redis://me:hunter2#x@h/0",
        "redid://h?password=hunter2",
        "redis:h?ssl_password=hunter2",
        "redis+sentinel://a/?sentinel_password=hunter2",
        "rediss://h?ssl_password=hunter2&ssl_cert_reqs=maybe",
    ],
)
def test_a_misspelt_url_is_refused_without_the_password_that_it_may_hold(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        connect(url)

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "wanted", "place", "tls"),
    [
        ("redis://me:pw@h/2", True, "rediss://h:6379/2", {}),
        (
            "rediss://h",
            {"ssl_cert_reqs": "none"},
            "rediss://h:6379/0",
            {"ssl_cert_reqs": "none"},
        ),
        ("valkey://h", {"ca_certs": "/ca"}, "rediss://h:6379/0", {"ssl_ca_certs": "/ca"}),
        ("redis+sentinel://h/shop", True, "rediss+sentinel://h:26379/shop/0", {}),
        (
            "redis://h",
            {"ssl_min_version": "TLSv1.3"},
            "rediss://h:6379/0",
            {"ssl_min_version": ssl.TLSVersion.TLSv1_3},
        ),
        ("redis://h", False, "redis://h:6379/0", None),
        ("unix:///run/r.sock", True, "unix:///run/r.sock?db=0", None),
    ],
)
def test_the_setting_broker_use_ssl_is_tls(
    url: str, wanted: Any, place: str, tls: dict[str, Any] | None
) -> None:
    app = Liteq("shop", broker=url, broker_use_ssl=wanted)
    found = app.broker._link.place  # type: ignore[attr-defined]

    assert str(found) == place
    assert found.tls == tls


def test_a_broker_use_ssl_that_is_neither_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="True or a dict"):
        _ = Liteq("shop", broker="redis://h", broker_use_ssl="yes").broker


def test_the_time_to_connect_in_is_a_setting() -> None:
    app = Liteq("shop", broker="redis://h", broker_connection_timeout=1.5)

    assert app.broker._link.options["socket_connect_timeout"] == 1.5  # type: ignore[attr-defined]


_WORD = st.text("ab1.-/:@?&=%#;,[]+ Ü_", max_size=6)
_NUMBER = st.integers(0, 70_000).map(str) | _WORD


@given(
    scheme=st.sampled_from(["redis", "valkey", "unix", "rediss", "redis+socket", "REDIS"]),
    account=st.one_of(st.just(""), st.builds("{}:{}@".format, _WORD, _WORD)),
    place=st.builds("{}:{}".format, _WORD, _NUMBER) | _WORD.map("/{}".format) | _WORD,
    db=st.just("") | _NUMBER.map("/{}".format),
    query=st.just("")
    | st.builds("?{}={}&db={}".format, st.just("namespace") | _WORD, _WORD, _NUMBER),
)
def test_what_a_probe_reads_out_of_a_url_is_what_it_says(
    scheme: str, account: str, place: str, db: str, query: str
) -> None:
    url = f"{scheme}://{account}{place}{db}{query}"
    quick = server_of(url)
    if quick is None:
        return  # left to those who read all of them
    found = parse(url)
    assert quick == (
        found.path or found.hosts[0],
        found.db,
        found.username,
        found.password,
        found.options.get("namespace", "default"),
    )
    assert (found.tls, found.service) == (None, None)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", (("localhost", 6379), 0, None, None, "default")),
        ("redis://:pw@h:7/3?namespace=shop", (("h", 7), 3, None, "pw", "shop")),
        ("valkey://me:pw@10.0.0.1", (("10.0.0.1", 6379), 0, "me", "pw", "default")),
        ("unix:///run/r.sock?db=2", ("/run/r.sock", 2, None, None, "default")),
        ("rediss://h", None),
        ("redis://h:99999", None),
        ("redis://:p%40ss@h", None),
        ("redis://h?socket_timeout=3", None),
        ("redis+sentinel://h/shop", None),
    ],
)
def test_a_probe_reads_the_usual_urls_alone(url: str, expected: Any) -> None:
    assert server_of(url) == expected


def test_no_password_shows() -> None:
    for url in ("redis://me:hunter2@h/0", "unix://me:hunter2@/r", "rediss://:hunter2@h"):
        broker = connect(url)
        assert isinstance(broker, RedisBroker)
        assert "hunter2" not in f"{broker!r}{broker.url}{broker._link.place!r}"


def test_options_of_other_stores_and_transports_are_taken_in_silence() -> None:
    options = {
        "visibility_timeout": 3_600,
        "fanout_prefix": True,
        "busy_timeout": 5.0,
        "durability": "normal",
        "global_keyprefix": "shop:",
        "socket_keepalive": True,
    }

    broker = connect("redis://h", options)

    assert isinstance(broker, RedisBroker)
    assert broker._prefix == "shop:{liteq:default}:"
    with pytest.warns(ConfigWarning, match="no option 'visibilty_timeout'"):
        connect("redis://h", {"visibilty_timeout": 1})


def test_a_namespace_is_in_the_url_or_among_the_options() -> None:
    def prefix(url: str, options: dict[str, Any]) -> Any:
        return connect(url, options)._prefix  # type: ignore[attr-defined]

    assert prefix("redis://h", {"namespace": "shop"}) == "{liteq:shop}:"
    assert prefix("redis://h?namespace=shop", {"namespace": "b"}) == "{liteq:shop}:"


@pytest.mark.parametrize(
    ("option", "read"),
    [
        ("socket_timeout=2.5", lambda broker: broker._link.timeout == 2.5),
        (
            "socket_connect_timeout=2",
            lambda broker: broker._link.options["socket_connect_timeout"] == 2.0,
        ),
        (
            "socket_keepalive=false",
            lambda broker: broker._link.keepalive is False,
        ),
        ("global_keyprefix=shop:", lambda broker: broker._prefix.startswith("shop:{")),
        ("durability=replicated&replicas=2", lambda broker: broker._link.replicas == 2),
        (
            "durability=replicated&replica_timeout=0.5",
            lambda broker: broker._link.replica_timeout == 0.5,
        ),
        ("client_name=web", lambda broker: broker._link.options["client_name"] == "web"),
        ("visibility_timeout=3600", lambda broker: True),
    ],
)
def test_options_of_the_connection_are_in_the_url_too(
    option: str, read: Callable[[Any], bool]
) -> None:
    assert read(connect(f"redis://h?{option}"))


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("redis+sentinel://h/shop", {"sentinel_password": "s"}, (None, "s", None)),
        ("redis+sentinel://h/shop", {"sentinel_kwargs": {"password": "s"}}, (None, "s", None)),
        (
            "redis+sentinel://h/shop?sentinel_password=s",
            {"sentinel_kwargs": '{"username": "u", "password": "x", "socket_timeout": 1}'},
            ("u", "s", None),
        ),
        (
            "redis+sentinel://h/shop",
            {"sentinel_kwargs": {"ssl": True, "ssl_cert_reqs": "none"}},
            (None, None, {"ssl_cert_reqs": "none"}),
        ),
        (
            "rediss+sentinel://h/shop?ssl_ca_certs=/ca",
            {},
            (None, None, {"ssl_ca_certs": "/ca"}),
        ),
        (
            "rediss+sentinel://h/shop?ssl_ca_certs=/ca",
            {"sentinel_kwargs": {"ssl": False}},
            (None, None, None),
        ),
    ],
)
def test_the_sentinels_have_a_user_and_tls_of_their_own(
    url: str, options: dict[str, Any], expected: Any
) -> None:
    place = connect(url, options)._link.place  # type: ignore[attr-defined]

    assert place[7:10] == expected
    assert (place.username, place.password) == (None, None)


def test_an_option_that_cannot_be_is_named_without_the_password_in_it() -> None:
    for options in (
        {"sentinel_kwargs": {"password": "hunter2", "pasword": "x"}},
        {"sentinel_password": ["hunter2"]},
    ):
        with pytest.raises(ImproperlyConfigured, match="sentinel_") as raised:
            connect("redis+sentinel://h/shop", options)
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_timeout_that_no_socket_can_have_is_refused(value: str) -> None:
    with pytest.raises(
        ImproperlyConfigured, match="socket_timeout must be a number of seconds"
    ):
        connect(f"redis://h?socket_timeout={value}")
    with pytest.raises(ImproperlyConfigured, match="broker_transport_options: socket_timeout"):
        connect("redis://h", {"socket_timeout": float(value) if value != "soon" else value})


def test_an_app_takes_its_store_from_its_urls() -> None:
    urls = ["sentinel://a:1", "sentinel://b:2"]
    app = Liteq("shop", broker=urls, broker_transport_options={"master_name": "shop"})
    try:
        assert app.broker.url == "redis+sentinel://a:1,b:2/shop/0"
        assert app.broker.max_deliveries == app.conf.task_max_deliveries
    finally:
        app.close()


def test_an_app_on_sqlite_never_loads_the_client_of_redis() -> None:
    code = (
        "from liteq import Liteq\n"
        "app = Liteq('shop', broker='memory://')\n"
        "@app.task\ndef add(x, y): return x + y\n"
        "with app.worker(): assert add.delay(1, 2).get(timeout=10) == 3\n"
        "import sys\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'redis']\n"
        "assert not [name for name in sys.modules if name.startswith('liteq.brokers.redis')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=uncovered()
    )

    assert done.returncode == 0, done.stderr
