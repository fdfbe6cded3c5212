"""With encryption keys no `Secret` is in the store as it is, and all else works as before."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import world
from api import forget_current
from hypothesis import given
from hypothesis import strategies as st

from liteq import Liteq, Secret, chain, chord, group, serializers
from liteq.beat import Beat
from liteq.brokers.base import Broker
from liteq.brokers.redis import RedisBroker
from liteq.ciphers import KEYLESS, Fingerprints, using
from liteq.encryption import Keyring
from liteq.exceptions import (
    AlreadyEnqueued,
    DecodeError,
    DecryptionError,
    EncodeError,
    ImproperlyConfigured,
)
from liteq.executor import Executor
from liteq.inline import InlineWorker, attempt_with
from liteq.operating import describe
from liteq.signals import before_task_publish
from liteq.worker import Worker
from liteq.workers.pool import executor_settings

OLD = "b2xkLWtleS0wMTIzNDU2Nzg5YWJjZGVmZ2hpamtsbW4"
NEW = "bmV3LWtleS0wMTIzNDU2Nzg5YWJjZGVmZ2hpamtsbW4="
THIRD = "dGhlLTNyZC1rZXktMDEyMzQ1Njc4OWFiY2RlZmdoaWo"
PIN = "pin-4711-canary"
OTHER_PIN = "pin-0815-canary"


@pytest.fixture(autouse=True)
def _current() -> Iterator[None]:
    yield
    forget_current()


def make_app(broker: Broker, *keys: str, **settings: Any) -> Liteq:
    app = Liteq(
        "shop", broker="memory://", clock=broker.clock, encryption_keys=keys, **settings
    )
    app.broker = broker

    @app.task(name="echo")
    def echo(value: Any = None, *more: Any, **named: Any) -> Any:
        return value

    @app.task(name="reveal")
    def reveal(*values: Any, **named: Any) -> str:
        return "/".join(
            one.reveal() if isinstance(one, Secret) else f"{one}"
            for one in (*values, *named.values())
        )

    @app.task(name="wrap")
    def wrap(value: Any) -> Secret[Any]:
        return Secret(value.reveal())

    @app.task(name="join")
    def join(values: list[Secret[str]]) -> list[str]:
        return [type(one).__name__ for one in values]

    @app.task(name="again", bind=True)
    def again(self: Any, pin: Secret[str]) -> Secret[str]:
        if self.request.checkpoint is None:
            self.checkpoint([pin, "page 2"])
            raise self.retry(args=(Secret(pin.reveal()),), countdown=0)
        assert self.request.checkpoint == [pin, "page 2"]
        return pin

    @app.task(name="become", bind=True)
    def become(self: Any, pin: Secret[str]) -> None:
        raise self.replace(wrap.s(pin))

    @app.task(name="fail")
    def fail(pin: Secret[str], *_: Any) -> None:
        raise ValueError(f"no such pin: {pin.reveal()}", pin)

    @app.task(name="tell")
    def tell(request: Any, exc: BaseException, traceback: str) -> Any:
        return [request.args[0], f"{exc}"]

    @app.task(name="halfway", bind=True)
    def halfway(self: Any, pin: Secret[str]) -> None:
        self.checkpoint(pin)
        raise ValueError("no")

    @app.task(name="go on", bind=True)
    def go_on(self: Any, pin: str) -> str:
        if self.request.checkpoint is None:
            self.checkpoint(Secret(pin))
            raise self.retry(countdown=0)
        return f"{pin} {self.request.checkpoint.reveal()}"

    @app.task(name="resume")
    def resume(request: Any, *_: Any) -> Any:
        return request.checkpoint

    @app.task(name="note", bind=True)
    def note(self: Any, pin: Secret[str]) -> None:
        self.update_state(state="HALF", meta={"pin": pin, "page": 2})

    return app


def run(app: Liteq, most: int | None = None) -> None:
    """Run what is due, `most` calls of it, as the children of a worker of this app would."""
    executor = Executor(app.tasks, executor_settings(app, "w"))
    with InlineWorker(app.broker, attempt_with(executor)) as worker:
        for _ in islice(worker.run_due(), most):
            pass


def reason(app: Liteq, id: str) -> str:
    return app.broker.get([id])[id].dead or ""


def all_bytes(store: world.Store, broker: Broker) -> bytes:
    """Return all that the store has, in its files or under its keys."""
    if store.kind == "sqlite":
        # By another process: this one must not open what it uses as a store.
        return subprocess.run(
            ["sh", "-c", "find . -type f -exec cat {} +"],
            cwd=store.folder / "store",
            capture_output=True,
            check=True,
        ).stdout
    if store.kind == "memory":
        return broker._database.read(lambda db: bytes(db.serialize("main")))  # type: ignore[attr-defined]
    assert isinstance(broker, RedisBroker)
    found = []
    for key in broker._link.ask("KEYS", f"{broker._prefix}*"):
        match broker._link.ask("TYPE", key):
            case b"string" | "string":
                found.append(broker._link.ask("GET", key))
            case b"hash" | "hash":
                found.append(broker._link.ask("HGETALL", key))
            case b"zset" | "zset":
                found.append(broker._link.ask("ZRANGE", key, "0", "-1"))
            case b"set" | "set":
                found.append(broker._link.ask("SMEMBERS", key))
            case b"list" | "list":
                found.append(broker._link.ask("LRANGE", key, "0", "-1"))
            case _:
                found.append(broker._link.ask("XRANGE", key, "-", "+"))
    return repr(found).encode()


# What is stored


def test_no_secret_is_in_the_store_and_all_calls_have_it(
    store: world.Store, broker: Broker
) -> None:
    app = make_app(broker, NEW, accept_content=["json", "msgpack", "yaml"])
    t, pin = app.tasks, Secret(PIN)
    made = [
        t["wrap"].delay(pin),
        t["again"].delay(pin),
        t["become"].delay(pin),
        chain(t["wrap"].s(pin), t["wrap"].s()).delay(),
        group(t["wrap"].s(pin), t["echo"].s({"deep": [pin]})).delay(),
        chord([t["wrap"].s(pin), t["echo"].s(pin)], t["join"].s()).delay(),
        t["echo"].apply_async((1,), link=t["reveal"].s(pin).set(ignore_result=True)),
        t["fail"].apply_async((pin,), link_error=t["tell"].s().set(task_id="told")),
        t["note"].delay(pin),
        t["wrap"].apply_async((pin,), serializer="msgpack"),
        t["wrap"].apply_async((pin,), serializer="yaml"),
    ]
    app.enqueue_many([t["echo"].s(pin), t["echo"].s(pin, priority=3)])
    t["echo"].enqueue_many([(pin,), (pin, 2)])
    app.schedules.add("nightly", t["echo"], 60, args=(pin,))
    waiting = all_bytes(store, broker)
    run(app)

    stored = all_bytes(store, broker)
    assert PIN.encode() not in waiting + stored
    assert b"encrypted" in waiting
    assert b"encrypted" in stored
    assert [one.get(timeout=0, propagate=False) for one in made[:6]] == [
        pin,
        pin,
        pin,
        pin,
        [pin, {"deep": [pin]}],
        ["Secret", "Secret"],
    ]
    assert app.AsyncResult("told").get(timeout=0) == [
        pin,
        "('no such pin: ********', Secret('********'))",
    ]
    assert not broker.counts().get("default", {}).get("queued")


def test_an_error_callback_reads_the_checkpoint_of_what_failed(broker: Broker) -> None:
    app = make_app(broker, NEW)
    halfway, resume = app.tasks["halfway"], app.tasks["resume"]
    halfway.apply_async((Secret(PIN),), link_error=resume.s().set(task_id="resumed"))
    run(app)

    assert app.AsyncResult("resumed").get(timeout=0) == Secret(PIN)


def test_all_but_the_secrets_stays_readable(store: world.Store, broker: Broker) -> None:
    app = make_app(broker, NEW)
    app.tasks["echo"].delay({"user": "bob-the-reader", "pin": Secret(PIN)})

    assert b"bob-the-reader" in all_bytes(store, broker)


def test_calls_without_secrets_are_stored_as_without_keys(clock: world.FakeClock) -> None:
    app = make_app(world.Store("memory", Path(), clock).open(), NEW)
    made = app.tasks["echo"].delay([1, "a", {"b": None}])

    assert app.broker.get([made.id])[made.id].message.body == b'[[[1,"a",{"b":null}]],{}]'


def test_progress_and_arguments_are_read_by_who_has_the_key(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    made = app.tasks["echo"].delay(Secret(PIN))
    app.backend.store_result(made.id, {"pin": Secret(PIN)}, "HALF")

    assert made.args == (Secret(PIN),)
    assert made.info == {"pin": Secret(PIN)}
    with pytest.raises(DecryptionError, match="encryption_keys are not set"):
        _ = keyless.AsyncResult(made.id).args
    with pytest.raises(DecryptionError, match="encryption_keys are not set"):
        _ = keyless.AsyncResult(made.id).info
    assert repr(keyless.AsyncResult(made.id).without_keys().args) == "(Secret('********'),)"


@pytest.mark.parametrize("kind", ["json", "pickle", "msgpack", "yaml"])
def test_every_serializer_encrypts(kind: str, broker: Broker) -> None:
    app = make_app(
        broker,
        NEW,
        accept_content=["json", "pickle", "msgpack", "yaml"],
        result_accept_content=["json", "pickle", "msgpack", "yaml"],
        result_serializer=kind,
    )
    pins = [Secret(PIN), {"deep": Secret({"pin": PIN, "more": (1, b"x")})}]
    made = app.tasks["echo"].apply_async((pins,), serializer=kind)
    assert PIN.encode() not in broker.get([made.id])[made.id].message.body
    run(app)

    assert PIN.encode() not in (broker.get([made.id])[made.id].result or b"")
    assert made.get(timeout=0) == pins


def test_libraries_that_build_on_pickle_encrypt_as_well(broker: Broker) -> None:
    import dill

    serializers.register("dill", dill.dumps, dill.loads, "application/x-dill", "binary")
    try:
        data = serializers.dumps([Secret(PIN), 1], "dill", cipher=Keyring([NEW]))
        assert PIN.encode() not in data
        assert serializers.loads(data, "dill", ("dill",), Keyring([NEW])) == [Secret(PIN), 1]
        shown = serializers.loads(data, "dill", ("dill",))
    finally:
        serializers.unregister("dill")
    assert repr(shown) == "[Secret('********'), 1]"


def test_outside_of_a_serializer_a_secret_is_pickled_as_it_is() -> None:
    assert pickle.loads(pickle.dumps(Secret(PIN))) == Secret(PIN)


def test_a_registered_type_may_hold_secrets() -> None:
    class Card:
        def __init__(self, pin: Secret[str]) -> None:
            self.pin = pin

    serializers.register_type(Card, "test-card", lambda card: [card.pin], lambda v: Card(*v))
    data = serializers.dumps(Card(Secret(PIN)), cipher=Keyring([NEW]))

    assert PIN.encode() not in data
    assert serializers.loads(data, cipher=Keyring([NEW])).pin == Secret(PIN)


def test_headers_take_no_secret(broker: Broker) -> None:
    app = make_app(broker, NEW)
    with pytest.raises(EncodeError, match="Secret is not plain JSON"):
        app.tasks["echo"].apply_async((1,), headers={"pin": Secret(PIN)})


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Secret, inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", ["json", "pickle"])
@given(value=_values, twice=st.booleans())
def test_whatever_is_secret_comes_back_as_it_was(kind: str, value: Any, twice: bool) -> None:
    cipher = Keyring([NEW, OLD])
    data = serializers.dumps([Secret(value), value], kind, cipher=Keyring([OLD]))
    if twice:  # through a process without keys
        data = serializers.dumps(serializers.loads(data, kind, (kind,)), kind)

    assert serializers.loads(data, kind, (kind,), cipher) == [Secret(value), value]


def test_a_secret_inside_a_secret_is_encrypted_once() -> None:
    value: Any = PIN
    for _ in range(20):
        value = Secret([Secret([value])])

    data = serializers.dumps(value, cipher=Keyring([NEW]))

    assert len(data) < 3000
    assert serializers.loads(data, cipher=Keyring([NEW])) == value


def test_what_cannot_be_written_is_named_without_what_is_secret() -> None:
    with pytest.raises(EncodeError) as caught:
        serializers.dumps({"a": Secret({PIN: object()})}, cipher=Keyring([NEW]))
    assert PIN not in str(caught.value)
    assert str(caught.value).startswith("value['a']: object of type object")


# Keys that are missing, wrong or exchanged


def test_a_worker_without_keys_makes_a_dead_letter_that_runs_once_it_has_them(
    broker: Broker,
) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    made = app.tasks["reveal"].delay(Secret(PIN))
    run(keyless)

    assert reason(app, made.id) == (
        "a Secret is encrypted, and encryption_keys are not set here"
    )
    broker.redrive([made.id])
    run(app)
    assert made.get(timeout=0) == PIN


def test_nor_does_a_worker_go_on_from_a_checkpoint_that_it_cannot_read(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    made = app.tasks["go on"].delay("a")
    run(app, 1)
    run(keyless)

    assert "encryption_keys are not set here" in reason(app, made.id)
    broker.redrive([made.id])
    run(app)
    assert made.get(timeout=0) == "a a"


def test_a_worker_with_other_keys_makes_a_dead_letter(broker: Broker) -> None:
    app, other = make_app(broker, NEW), make_app(broker, OLD)
    made = app.tasks["reveal"].delay(Secret(PIN))
    run(other)

    assert reason(app, made.id) == "a Secret was encrypted with a key that is not known here"


def test_a_step_that_cannot_read_what_the_one_before_left_is_a_dead_letter(
    broker: Broker,
) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    made = chain(app.tasks["wrap"].s(Secret(PIN)), app.tasks["reveal"].s()).delay()
    run(app, 1)
    run(keyless)

    assert "encryption_keys are not set" in reason(app, made.id)
    broker.redrive([made.id])
    run(app)
    assert made.get(timeout=0) == PIN


def test_a_result_is_refused_where_there_is_no_key(broker: Broker) -> None:
    app, keyless, other = make_app(broker, NEW), make_app(broker), make_app(broker, OLD)
    made = app.tasks["wrap"].delay(Secret(PIN))
    run(app)

    with pytest.raises(DecryptionError, match="encryption_keys are not set here"):
        keyless.AsyncResult(made.id).get(timeout=0)
    with pytest.raises(DecryptionError, match="a key that is not known here"):
        other.AsyncResult(made.id).get(timeout=0)
    shown = keyless.AsyncResult(made.id).without_keys().get(timeout=0)
    assert repr(shown) == "Secret('********')"
    for use in (shown.reveal, lambda: bool(shown)):
        with pytest.raises(DecryptionError, match="read to be shown only"):
            use()


def test_the_parts_of_a_group_are_shown_without_keys(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    made = group(app.tasks["wrap"].s(Secret(PIN)), app.tasks["echo"].s(2)).delay()
    made.save()
    run(app)

    shown = keyless.AsyncResult(made.id).without_keys().get(timeout=0)
    assert repr(shown) == "[Secret('********'), 2]"


def test_keys_are_exchanged_while_all_runs(broker: Broker) -> None:
    old, behind, before, new = (
        make_app(broker, *keys) for keys in ((OLD,), (OLD, NEW), (NEW, OLD), (NEW,))
    )
    made = [app.tasks["wrap"].delay(Secret(PIN)) for app in (old, behind, before, old)]
    run(behind, 1)
    run(before, 2)
    run(new)

    for app in (behind, before):
        results = [app.AsyncResult(one.id).get(timeout=0) for one in made[:3]]
        assert results == [Secret(PIN)] * 3
    with pytest.raises(DecryptionError):
        new.AsyncResult(made[0].id).get(timeout=0)
    assert new.AsyncResult(made[1].id).get(timeout=0) == Secret(PIN)
    assert "not known here" in reason(new, made[3].id)


def test_what_was_sent_without_keys_is_read_by_who_has_them(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    made = keyless.tasks["wrap"].delay(Secret(PIN))
    run(app)

    assert app.AsyncResult(made.id).get(timeout=0) == Secret(PIN)


def test_what_was_changed_is_refused(broker: Broker) -> None:
    app = make_app(broker, NEW)
    message = app.sender.message(app.sender.rules(), "reveal", None, (Secret(PIN),), {}, {})
    [[held], _] = json.loads(message.body)
    token = held["__liteq__"][1]
    ids = []
    for at in (-5, 60, 18):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        body = message.body.replace(token.encode(), changed.encode())
        one = message._replace(id=f"changed{at}", body=body)
        broker.enqueue([one])
        ids.append(one.id)
    for bad in ("", "x", ":", token.partition(":")[0]):
        body = message.body.replace(token.encode(), bad.encode())
        broker.enqueue([message._replace(id=f"bad {bad[:9]}{len(bad)}", body=body)])
        ids.append(f"bad {bad[:9]}{len(bad)}")
    run(app)

    for id in ids:
        assert reason(app, id), id
        assert PIN not in reason(app, id)
    assert reason(app, ids[0]) == "an encrypted Secret is damaged: it was changed"


def test_what_a_secret_holds_is_not_in_the_error_of_who_cannot_read_it() -> None:
    cipher = Keyring([NEW])
    token = cipher.encrypt(f'{{"__liteq__":["enum","{PIN}","Pin","X"]}}'.encode())
    for kind, data in (
        ("json", json.dumps({"__liteq__": ["encrypted", token]}).encode()),
        (
            "pickle",
            serializers.dumps(
                serializers.loads(json.dumps({"__liteq__": ["encrypted", token]}).encode()),
                "pickle",
            ),
        ),
    ):
        with pytest.raises(DecodeError, match="cannot be read: DecodeError") as caught:
            serializers.loads(data, kind, (kind,), cipher)
        assert PIN not in str(caught.value)


def test_pickled_bytes_are_not_read_as_json() -> None:
    cipher = Keyring([NEW])
    token = cipher.encrypt(pickle.dumps(PIN))
    with pytest.raises(DecodeError, match="cannot be read"):
        serializers.loads(
            json.dumps({"__liteq__": ["encrypted", token]}).encode(), cipher=cipher
        )


@pytest.mark.parametrize(
    "key", ["", "short", "a key of at least 16 characters", "A" * 43, "é" * 43, f"{OLD}AAAA"]
)
def test_a_key_that_is_not_random_is_refused_and_not_shown(key: str) -> None:
    app = Liteq("shop", broker="memory://")
    with pytest.raises(ImproperlyConfigured, match="32 random bytes in URL-safe base64") as got:
        app.conf.encryption_keys = [OLD, key]
    assert OLD not in str(got.value)
    assert not key or key not in str(got.value)


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(f"{NEW}\n{OLD}\n")
    monkeypatch.setenv("LITEQ_ENCRYPTION_KEYS_FILE", str(tmp_path / "keys"))
    app = Liteq("shop", broker="memory://")

    assert app.conf.encryption_keys == (NEW, OLD)
    assert NEW not in repr(app.cipher)
    assert NEW not in str(app.conf.humanize())


def test_keys_without_the_package_say_what_to_install(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
    app = make_app(broker, NEW)

    app.tasks["echo"].delay(1)
    for use in (
        lambda: app.tasks["echo"].delay(Secret(PIN)),
        lambda: app.tasks["echo"].apply((Secret(PIN),)) and app.cipher.prepare(),
        lambda: serializers.loads(b'{"__liteq__":["encrypted","a:b"]}', cipher=app.cipher),
        lambda: Worker(app, pool="solo").run(),
    ):
        with pytest.raises(
            ImproperlyConfigured, match=r"pip install 'liteq-queue\[encryption\]'"
        ):
            use()


def test_what_is_handed_on_is_encrypted_anew_with_the_first_key(broker: Broker) -> None:
    old, both = make_app(broker, OLD), make_app(broker, NEW, OLD)
    old.schedules.add("often", old.tasks["reveal"], 60, args=(Secret(PIN),))
    both.schedules.update("often")
    other = make_app(broker, THIRD)
    other.schedules.update("often")  # which it cannot read, and leaves

    made = both.schedules.get("often").entry
    assert made is not None
    sent = both.tasks["reveal"].delay(*made.args)
    run(make_app(broker, NEW))
    assert both.AsyncResult(sent.id).get(timeout=0) == PIN


def test_a_beat_that_starts_encrypts_entries_made_at_run_time_with_the_first_key(
    broker: Broker,
) -> None:
    def stored() -> bytes:
        return broker.schedules()[0].entry

    signed = {"security_keys": ["a key of at least 16 characters"]}
    for settings in ({}, signed):
        plain = make_app(broker, **settings)
        plain.schedules.add("often", plain.tasks["reveal"], 60, args=(Secret(PIN),))
        first = stored()
        Beat(plain).start()
        others = make_app(broker, THIRD, **settings)
        others.main = "warehouse"
        Beat(others).start()
        assert stored() == first
        for keys in ((OLD,), (NEW, OLD), (NEW,)):
            app = make_app(broker, *keys, **settings)
            before = stored()
            Beat(app).start()
            assert (stored() == before) is (keys == (NEW,))
            assert PIN.encode() not in stored()
        other = make_app(broker, THIRD, **settings)
        Beat(other).start()
        assert stored() == before
        made = app.schedules.get("often").entry
        sent = app.tasks["reveal"].delay(*made.args)
        run(app)
        assert sent.get(timeout=0) == PIN
        app.schedules.remove("often")


def test_two_apps_of_one_process_have_their_own_keys(broker: Broker) -> None:
    one, other = make_app(broker, OLD), make_app(broker, NEW)
    first, second = one.tasks["wrap"].delay(Secret(PIN)), other.tasks["wrap"].delay(Secret(PIN))
    run(one)

    assert one.AsyncResult(first.id).get(timeout=0) == Secret(PIN)
    assert "not known here" in reason(one, second.id)


def test_a_keyring_goes_to_spawned_children() -> None:
    cipher = pickle.loads(pickle.dumps(Keyring([NEW, OLD])))
    assert cipher.decrypt(Keyring([OLD]).encrypt(b"x")) == b"x"


# What compares calls


def test_unique_calls_with_secrets_are_told_apart_by_them(
    store: world.Store, broker: Broker
) -> None:
    app = make_app(broker, NEW)

    @app.task(name="once", unique=True)
    def once(pin: Any, shop: int = 1) -> None: ...

    first = once.delay(Secret(PIN))
    assert once.delay(pin=Secret(PIN)).id == first.id
    assert once.delay(Secret(OTHER_PIN)).id != first.id
    nested = once.delay([Secret({"a": 1, "b": PIN})])
    assert once.delay([Secret({"b": PIN, "a": 1})]).id == nested.id
    assert PIN.encode() not in all_bytes(store, broker)


def test_a_unique_key_is_no_hash_of_the_value_that_others_could_guess(broker: Broker) -> None:
    keys = []
    for name, held in (("a", ()), ("b", (OLD,)), ("c", (NEW,)), ("d", (NEW, OLD))):
        app = make_app(broker, *held)

        @app.task(name="once", unique=True)
        def once(pin: Any) -> None: ...

        made = once.apply_async((Secret(PIN),), task_id=name)
        keys.append(broker.get([made.id])[made.id].message.unique_key)

    assert keys[2] == keys[3]
    assert len(set(keys)) == 3


def test_debounce_takes_the_last_secret(broker: Broker) -> None:
    app = make_app(broker, NEW)

    @app.task(name="sync", debounce=5, unique_key=["shop"])
    def sync(shop: Any, pin: Any) -> Any:
        return pin

    first = sync.delay(Secret("shop-7-canary"), Secret(PIN))
    second = sync.delay(Secret("shop-7-canary"), Secret(OTHER_PIN))
    broker.clock.advance(6)  # type: ignore[attr-defined]
    run(app)

    assert second.id == first.id
    assert first.get(timeout=0) == Secret(OTHER_PIN)


def test_a_secret_has_no_subclasses() -> None:
    with pytest.raises(TypeError, match="Pin: a Secret is stored and read as one"):
        type("Pin", (Secret,), {})


def test_the_key_of_a_limit_may_be_a_secret(store: world.Store, broker: Broker) -> None:
    app = make_app(broker, NEW)

    @app.task(name="ask", max_concurrency=1, concurrency_key="pin")
    def ask(pin: Secret[str]) -> None: ...

    made = [ask.delay(Secret(pin)) for pin in (PIN, PIN, OTHER_PIN)]
    limits = [broker.get([one.id])[one.id].message.limits for one in made]

    assert limits[0] == limits[1] != limits[2]
    assert PIN.encode() not in all_bytes(store, broker)
    chain(app.tasks["echo"].si(1), ask.si(Secret(PIN))).delay()


def test_the_same_call_may_be_sent_again_under_its_id(broker: Broker) -> None:
    app = make_app(broker, NEW, security_keys=["a key of at least 16 characters"])
    echo = app.tasks["echo"]
    first = echo.apply_async((Secret(PIN), 1), task_id="order-7")
    again = echo.apply_async((Secret(PIN), 1), task_id="order-7")
    with pytest.raises(AlreadyEnqueued):
        echo.apply_async((Secret(OTHER_PIN), 1), task_id="order-7")
    run(app)

    assert first.id == again.id
    assert again.get(timeout=0) == Secret(PIN)


# Periodic entries


def test_a_beat_without_keys_fires_an_entry_with_secrets(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    app.schedules.add("often", app.tasks["reveal"], 60, args=(Secret(PIN),))
    shown = keyless.schedules.get("often")
    assert shown.error is None
    assert PIN not in str(shown)
    app.schedules.update("often", schedule=timedelta(seconds=30))
    keyless.schedules.update("often", schedule=timedelta(seconds=20))

    beat = Beat(keyless)
    beat.start()
    broker.clock.advance(61)  # type: ignore[attr-defined]
    beat.tick()
    [id] = [one.id for one in broker.browse("queued")]
    run(app)
    assert app.AsyncResult(id).get(timeout=0) == PIN


def test_a_beat_without_keys_says_in_a_line_what_it_cannot_send(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    for one in (app, keyless):
        one.tasks["reveal"].unique = True
    app.schedules.add("often", app.tasks["reveal"], 60, args=(Secret(PIN),))

    beat = Beat(keyless)
    beat.start()
    broker.clock.advance(61)  # type: ignore[attr-defined]
    beat.tick()

    [said] = [one for one in caplog.records if "'often'" in one.getMessage()]
    assert "encryption_keys are not set here" in said.getMessage()
    assert said.exc_info is None


def test_a_declared_entry_is_written_anew_only_when_it_or_the_first_key_changed(
    broker: Broker,
) -> None:
    def written(*keys: str, pin: str = PIN, **settings: Any) -> bytes:
        app = make_app(broker, *keys, **settings)
        app.conf.beat_schedule = {
            "often": {"task": "reveal", "schedule": 60.0, "args": (Secret(pin), 1)}
        }
        app.schedules.reconcile()
        [row] = broker.schedules()
        return row.entry

    signed = {"security_keys": ["a key of at least 16 characters"]}
    plain = written()
    first = written(OLD)
    assert PIN.encode() in plain
    assert PIN.encode() not in first
    assert written(OLD) == first == written(OLD, NEW)
    moved = written(NEW, OLD)
    assert moved != first
    assert written(NEW, OLD, pin=OTHER_PIN) != moved
    sealed = written(NEW, **signed)
    assert written(NEW, **signed) == sealed
    assert written(NEW, security_keys=["b key of at least 16 characters"]) != sealed
    assert PIN.encode() in written()


# In place, in tests, and what only shows


def test_eager_calls_and_the_test_mode_do_the_same(clock: world.FakeClock) -> None:
    from liteq.testing import all_enqueued, assert_enqueued, drain, inline, perform

    app = make_app(world.Store("memory", Path(), clock).open(), NEW)
    echo = app.tasks["echo"]
    assert echo.apply((Secret(PIN),)).get() == Secret(PIN)
    assert perform(echo, Secret(PIN)) == Secret(PIN)
    with inline(app):
        made = chain(echo.s(Secret(PIN)), echo.s()).delay()
        assert_enqueued(echo, args=(Secret(PIN),))
        assert all_enqueued(echo)[0].args == (Secret(PIN),)
        assert drain()[0].args == (Secret(PIN),)
        assert made.get(timeout=0) == Secret(PIN)
    app.conf.task_always_eager = True
    app.conf.task_store_eager_result = True
    made = echo.delay(Secret(PIN))
    assert made.get() == Secret(PIN)
    assert app.sender.prepare(echo, (Secret(PIN),), {}, {})().get() == Secret(PIN)
    stored = app.broker.get([made.id])[made.id].result or b""
    assert b"encrypted" in stored
    assert chain(echo.s(Secret(PIN)), echo.s()).apply().get() == Secret(PIN)


def test_receivers_of_signals_have_the_value(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    seen: list[Any] = []

    def look(body: Any, **_: Any) -> None:
        seen.append(body[0][0])

    before_task_publish.connect(look)
    app.tasks["echo"].delay(Secret(PIN))
    app.schedules.add("often", app.tasks["echo"], 60, args=(Secret(PIN),))
    keyless.tasks["echo"].delay(keyless.schedules.get("often").entry.args[0])

    assert seen[0].reveal() == PIN
    with pytest.raises(DecryptionError):
        seen[1].reveal()


def test_what_shows_a_call_needs_no_keys_and_shows_no_ciphertext(broker: Broker) -> None:
    app, keyless, other = make_app(broker, NEW), make_app(broker), make_app(broker, OLD)
    made = app.tasks["echo"].delay({"a": Secret(PIN)}, "plain")
    app.backend.store_result(made.id, {"pin": Secret(PIN)}, "HALF")
    for tool in (keyless, other):
        told = describe(tool, made.id)
        assert told["args"] == "({'a': '********'}, 'plain')"
    run(app)
    for tool in (keyless, other):
        assert describe(tool, made.id)["result"] == "{'a': '********'}"


PROJECT = """
from liteq import Liteq, Secret
app = Liteq("shop", broker={broker!r})

@app.task
def keep(pin, n):
    return {{"pin": pin, "n": n}}
"""


def test_the_command_line_shows_calls_without_keys(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROJECT.format(broker=f"sqlite://{tmp_path}/store"))

    def python(*args: str, keys: str = "") -> subprocess.CompletedProcess[str]:
        env = (
            {**world.uncovered(), "LITEQ_ENCRYPTION_KEYS": keys} if keys else world.uncovered()
        )
        return subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    sent = python(
        "-c", f"import shop; print(shop.keep.delay(shop.Secret({PIN!r}), 1).id)", keys=NEW
    )
    id = sent.stdout.strip()
    shown = python("-m", "liteq", "-A", "shop", "show", id)
    assert "********" in shown.stdout
    assert "gAAAA" not in shown.stdout
    done = python("-m", "liteq", "-A", "shop", "worker", "--burst", "-c", "1", keys=NEW)
    assert done.returncode == 0, done.stderr
    for command in ("show", "result"):
        shown = python("-m", "liteq", "-A", "shop", command, id)
        assert shown.returncode == 0, shown.stderr
        assert "********" in shown.stdout
        assert "gAAAA" not in shown.stdout
    assert PIN.encode() not in b"".join(
        path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()
    )


def test_an_app_without_keys_has_a_cipher_that_refuses(broker: Broker) -> None:
    assert make_app(broker).cipher is KEYLESS
    KEYLESS.prepare()
    assert KEYLESS.newest() is KEYLESS
    for use in (KEYLESS.encrypt, KEYLESS.fingerprint):  # nobody does, for it has no keys
        with pytest.raises(NotImplementedError):
            use(b"x")


def test_the_pages_show_calls_without_keys(broker: Broker) -> None:
    from starlette.testclient import TestClient

    from liteq.web import asgi_app

    app, keyless = make_app(broker, NEW), make_app(broker)
    made = app.tasks["echo"].delay({"pin-of": Secret(PIN)})
    run(app)

    with TestClient(asgi_app(keyless, auth=None), base_url="http://localhost") as ask:
        page = ask.get(f"/task?id={made.id}").text
        assert page.count("********") == 2  # the argument, and the result
        assert "gAAAA" not in page + ask.get("/tasks").text


def test_a_call_may_be_sent_again_from_a_coroutine(broker: Broker) -> None:
    app = make_app(broker, NEW)
    echo = app.tasks["echo"]

    async def send(pin: str, more: Any = 1, **options: Any) -> Any:
        return await echo.aapply_async((Secret(pin), more), task_id="order-7", **options)

    first, again = asyncio.run(send(PIN)), asyncio.run(send(PIN))
    for other in (send(OTHER_PIN), send(PIN, 2), send(PIN, serializer="json")):
        with contextlib.suppress(AlreadyEnqueued):
            assert asyncio.run(other).id == "order-7"
    run(app)

    assert first.id == again.id
    assert again.get(timeout=0) == Secret(PIN)


def test_a_call_under_an_id_that_is_taken_is_another_if_it_cannot_be_compared(
    broker: Broker,
) -> None:
    app = make_app(broker, NEW, accept_content=["json", "pickle"])
    keyless = make_app(broker)
    for id, kind in (("a", "json"), ("b", "pickle")):
        app.tasks["echo"].apply_async((Secret(PIN),), task_id=id, serializer=kind)
    again = make_app(broker, OLD, accept_content=["json", "pickle"])

    with pytest.raises(AlreadyEnqueued):
        keyless.tasks["echo"].apply_async((Secret(PIN),), task_id="a")
    with pytest.raises(AlreadyEnqueued):
        again.tasks["echo"].apply_async((Secret(PIN),), task_id="a")
    with pytest.raises(AlreadyEnqueued):
        app.tasks["echo"].apply_async((Secret(PIN),), task_id="b", serializer="pickle")


def test_a_keyless_sender_cannot_tell_what_is_encrypted_apart(broker: Broker) -> None:
    app, keyless = make_app(broker, NEW), make_app(broker)
    app.schedules.add("often", app.tasks["echo"], 60, args=(Secret(PIN),))
    args = keyless.schedules.get("often").entry.args

    with pytest.raises(DecryptionError):
        keyless.tasks["echo"].apply_async(args, unique=True)
    first = app.tasks["echo"].apply_async(args, unique=True)
    assert app.tasks["echo"].apply_async((Secret(PIN),), unique=True).id == first.id


def test_the_tokens_of_secrets_are_compared_as_long_as_nobody_has_decrypted_them() -> None:
    data = serializers.dumps([Secret(PIN), Secret(PIN)], cipher=Keyring([NEW]))
    (one, other), (same, _) = serializers.loads(data), serializers.loads(data)

    assert one == same != other
    assert hash(one) == hash(same)
    assert one.held != PIN
    assert copy.deepcopy(one) == one == pickle.loads(pickle.dumps(one))


@pytest.mark.parametrize("kind", ["json", "pickle"])
def test_a_token_of_json_may_be_handed_on_in_a_pickle(kind: str) -> None:
    cipher = Keyring([NEW])
    sealed = serializers.loads(serializers.dumps(Secret((PIN, 1)), cipher=cipher))

    data = serializers.dumps(sealed, kind, cipher=cipher)

    assert serializers.loads(data, kind, (kind,), cipher) == Secret((PIN, 1))
    with pytest.raises(DecodeError, match="cannot be read: ValueError"):
        _unpickle(cipher, b"\x80damaged")


def _unpickle(cipher: Keyring, data: bytes) -> Any:
    with using(cipher):
        return serializers.unpickled(cipher.encrypt(data))


# What was written stays readable: these are of the first version that could write them.

IN_JSON = (
    b'{"__liteq__":["encrypted","2bfcb33d852d296e:gAAAAABrA4gaIBDNi5aHImfGdk0RcXiauOCf52_HAU3W'
    b"xW0Xox28mR2pyImzTnWaM_v2miFaKmRieDuyXmebODtx_Nzq6CFkiEAu8bFxxNVakCBx4dqwPoGwCAl0E9FMy_Uc"
    b'_MvIG6on"]}'
)
IN_PICKLE = bytes.fromhex(
    "800595b3000000000000008c116c697465712e73657269616c697a657273948c09756e7069636b6c65649493"
    "948c89326266636233336438353264323936653a674141414141427241346761713338434d716a486c496c2d"
    "5a563542324356503268667833696c393130366e3932667a6e5578443830715146734b416f73623644354d37"
    "6c4c596937726644706e6e394251776268616269496769795763746f654d444f63534a65775650437a475058"
    "466c77375875733d94859452942e"
)


def test_what_the_first_version_has_encrypted_is_read() -> None:
    cipher = Keyring([NEW])
    assert serializers.loads(IN_JSON, cipher=cipher) == Secret(("pin", 7))
    assert serializers.loads(IN_PICKLE, "pickle", ("pickle",), cipher) == Secret({"pin": 7})


def test_fingerprints_are_those_of_the_first_version() -> None:
    found = serializers.dumps(Secret({"pin": 7}), cipher=Fingerprints(Keyring([NEW])))
    assert b"7d4194231cc34ac4c1518ccbd8f396d7c391c6790347bebd6ad25541abbea509" in found
