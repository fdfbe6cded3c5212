"""Signals reach their receivers, and nothing a receiver does reaches the sender."""

from __future__ import annotations

import functools
import gc
import logging
import pickle
import timeit
from types import SimpleNamespace
from typing import Any

import pytest

from liteq import signals
from liteq.signals import Signal

CELERY = """before_task_publish after_task_publish task_received task_prerun task_postrun
task_success task_retry task_failure task_internal_error task_revoked task_rejected
task_unknown celeryd_init celeryd_after_setup worker_init worker_ready worker_shutting_down
worker_shutdown heartbeat_sent worker_before_create_process worker_process_init
worker_process_shutdown import_modules setup_logging after_setup_logger
after_setup_task_logger beat_init beat_embedded_init user_preload_options"""


@pytest.fixture
def signal() -> Signal:
    return Signal("test", {"value"})


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.mark.parametrize("name", CELERY.split())
def test_every_signal_of_celery_is_there(name: str) -> None:
    assert isinstance(getattr(signals, name), Signal)
    assert getattr(signals, name).name == name
    assert name in signals.__all__


def test_a_receiver_gets_the_signal_the_sender_and_the_arguments(
    signal: Signal, heard: list[Any]
) -> None:
    @signal.connect
    def receiver(sender: Any, **kwargs: Any) -> str:
        heard.append((sender, kwargs))
        return "answer"

    assert signal.send("me", value=1) == [(receiver, "answer")]
    assert heard == [("me", {"signal": signal, "value": 1})]


def test_receivers_are_called_in_the_order_of_their_connection(
    signal: Signal, heard: list[Any]
) -> None:
    for number in range(5):
        signal.connect(lambda n=number, **_: heard.append(n), weak=False)
    signal.send(None)
    assert heard == [0, 1, 2, 3, 4]


def test_the_decorator_takes_options(signal: Signal, heard: list[Any]) -> None:
    @signal.connect(sender="tasks.add", weak=False)
    def receiver(**kwargs: Any) -> None:
        heard.append(kwargs["sender"])

    signal.send("tasks.mul")
    signal.send("tasks.add")
    assert heard == ["tasks.add"]
    assert callable(receiver)


def test_a_task_and_its_name_are_one_sender(signal: Signal, heard: list[Any]) -> None:
    add, mul = SimpleNamespace(name="add"), SimpleNamespace(name="mul")
    signal.connect(lambda **_: heard.append("by name"), sender="add", weak=False)
    signal.connect(lambda **_: heard.append("by task"), sender=add, weak=False)
    signal.send(mul)
    signal.send("mul")
    assert heard == []
    signal.send(add)
    signal.send("add")
    assert heard == ["by name", "by task"] * 2


def test_what_a_receiver_raises_is_logged_and_answered(
    signal: Signal, heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    @signal.connect
    def broken(**kwargs: Any) -> None:
        raise ValueError("oops")

    signal.connect(lambda **_: heard.append(1), weak=False)
    with caplog.at_level(logging.ERROR, "liteq.signals"):
        answers = signal.send(None)
    assert isinstance(answers[0][1], ValueError)
    assert heard == [1]
    assert "oops" in caplog.text
    assert "test" in caplog.messages[0]


def test_a_request_to_exit_goes_through(signal: Signal) -> None:
    @signal.connect
    def receiver(**kwargs: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        signal.send(None)


def test_told_of_something_no_receiver_can_end_who_tells(
    signal: Signal, heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    @signal.connect
    def receiver(**kwargs: Any) -> None:
        raise SystemExit(3)

    signal.connect(lambda **_: heard.append(1), weak=False)
    answers = signal.tell(None)
    assert isinstance(answers[0][1], SystemExit)
    assert heard == [1]
    assert "receiver" in caplog.text


def test_a_function_nobody_holds_is_forgotten(signal: Signal, heard: list[Any]) -> None:
    def receiver(**kwargs: Any) -> None:
        heard.append(1)

    signal.connect(receiver)
    del receiver
    gc.collect()
    signal.send(None)
    assert heard == []
    assert signal.receivers == []


def test_a_method_lives_as_long_as_its_object(signal: Signal, heard: list[Any]) -> None:
    class Listener:
        def receive(self, **kwargs: Any) -> None:
            heard.append(1)

    listener = Listener()
    signal.connect(listener.receive)
    signal.connect(listener.receive)
    signal.send(None)
    assert heard == [1]
    assert signal.disconnect(listener.receive)
    signal.connect(listener.receive)
    del listener
    gc.collect()
    assert signal.receivers == []


def test_a_receiver_is_connected_once_for_each_sender(signal: Signal, heard: list[Any]) -> None:
    def receiver(**kwargs: Any) -> None:
        heard.append(1)

    signal.connect(receiver)
    signal.connect(receiver)
    signal.connect(receiver, sender="other")
    assert len(signal.receivers) == 2


def test_a_dispatch_uid_connects_once_whatever_the_function(
    signal: Signal, heard: list[Any]
) -> None:
    signal.connect(lambda **_: heard.append(1), weak=False, dispatch_uid="x")
    signal.connect(lambda **_: heard.append(2), weak=False, dispatch_uid="x")
    signal.send(None)
    assert heard == [1]
    assert signal.disconnect(dispatch_uid="x")
    assert not signal.disconnect(dispatch_uid="x")


def test_a_receiver_may_disconnect_itself_while_it_is_called(
    signal: Signal, heard: list[Any]
) -> None:
    @signal.connect
    def once(**kwargs: Any) -> None:
        heard.append("once")
        signal.disconnect(once)

    signal.connect(lambda **_: heard.append("next"), weak=False)
    signal.send(None)
    signal.send(None)
    assert heard == ["once", "next", "next"]


def test_a_receiver_must_take_arguments_it_does_not_know(signal: Signal) -> None:
    with pytest.raises(ValueError, match=r"\*\*kwargs"):
        signal.connect(lambda sender: None)
    with pytest.raises(ValueError, match=r"\*\*kwargs"):
        signal.connect(functools.partial(lambda sender: None))
    with pytest.raises(TypeError, match="callable"):
        signal.connect("no function")  # type: ignore[call-overload]


def test_any_callable_may_receive(signal: Signal, heard: list[Any]) -> None:
    class Callable:
        __slots__ = ()

        def __call__(self, **kwargs: Any) -> None:
            heard.append("instance")

    def two(word: str, **kwargs: Any) -> None:
        heard.append(word)

    partial = functools.partial(two, "partial")
    signal.connect(Callable())  # cannot be referred to weakly, so it is held
    signal.connect(partial)
    signal.send(None)
    assert heard == ["instance", "partial"]


def test_it_knows_whether_anybody_listens(signal: Signal) -> None:
    assert not signal.has_listeners()
    signal.connect(lambda **_: None, sender="a", weak=False)
    assert signal.has_listeners("a")
    assert not signal.has_listeners("b")


def test_a_copy_has_no_receivers(signal: Signal) -> None:
    signal.connect(lambda **_: None, weak=False)
    copy = pickle.loads(pickle.dumps(signal))
    assert (copy.name, copy.providing_args, copy.receivers) == ("test", {"value"}, [])
    assert "test" in repr(copy)


def test_a_signal_nobody_hears_costs_next_to_nothing(signal: Signal) -> None:
    def send() -> None:
        if signal.receivers:
            signal.send(None)

    assert min(timeit.repeat(send, number=1_000, repeat=5)) / 1_000 < 2e-6
