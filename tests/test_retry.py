"""The arithmetic of retries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from liteq.retry import RetryPolicy, backoff, below, exhausted, give_up, run_at


@pytest.mark.parametrize(
    ("retries", "expected"), [(0, 1), (1, 2), (2, 4), (9, 512), (10, 600), (10_000, 600)]
)
def test_the_back_off_doubles_up_to_its_maximum(retries: int, expected: int) -> None:
    assert backoff(retries, jitter=False) == expected


@pytest.mark.parametrize(("factor", "expected"), [(True, 4), (5, 20), (2.9, 8), (0.1, 4)])
def test_the_factor_is_a_whole_number_of_at_least_one(factor: float, expected: int) -> None:
    assert backoff(2, factor=factor, jitter=False) == expected


def test_a_fraction_as_maximum_is_rounded_down() -> None:
    assert backoff(5, maximum=7.9, jitter=False) == 7


def test_without_a_maximum_an_endless_retry_stays_finite() -> None:
    assert backoff(10**9, maximum=None, jitter=False) == 2**64


def test_jitter_takes_any_second_up_to_the_back_off_included() -> None:
    assert backoff(3, random=lambda limit: limit - 1) == 8
    assert backoff(3, random=lambda limit: 0) == 0


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 1_000))
def test_jitter_never_leaves_its_range(retries: int, factor: int, maximum: int) -> None:
    most = backoff(retries, factor=factor, maximum=maximum, jitter=False)
    assert 0 <= backoff(retries, factor=factor, maximum=maximum) <= most <= maximum


@given(st.integers(1, 1_000))
def test_the_kernel_s_randomness_is_below_its_limit(limit: int) -> None:
    assert 0 <= below(limit) < limit


@pytest.mark.parametrize(
    ("retries", "most", "expected"), [(0, 3, False), (2, 3, False), (3, 3, True), (0, 0, True)]
)
def test_max_retries_counts_retries_not_attempts(
    retries: int, most: int, *, expected: bool
) -> None:
    assert exhausted(retries, most) is expected


def test_without_max_retries_nothing_is_exhausted() -> None:
    assert not exhausted(10**9, None)


def test_a_listed_exception_retries_and_an_excluded_one_does_not() -> None:
    policy = RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,))
    assert policy.catches(ConnectionError())
    assert not policy.catches(FileNotFoundError())
    assert not policy.catches(ValueError())


@pytest.mark.parametrize("exc", [Retry(), Ignore(), Reject()])
def test_steering_is_never_retried_automatically(exc: Exception) -> None:
    assert not RetryPolicy(autoretry_for=(Exception,)).catches(exc)


def test_an_automatic_retry_passes_the_kwargs_and_the_back_off() -> None:
    policy = RetryPolicy(
        retry_kwargs={"max_retries": 9, "countdown": 1}, retry_backoff=3, retry_jitter=False
    )
    assert policy.options(2) == {"max_retries": 9, "countdown": 12}
    assert RetryPolicy(retry_kwargs={"countdown": 1}).options(2) == {"countdown": 1}


NOW = 1_000_000.0
LATER = datetime.fromtimestamp(NOW + 60, UTC)


@pytest.mark.parametrize(
    ("countdown", "eta", "delay"),
    [
        (None, None, 180),
        (0, None, 0),
        (0, LATER, 60),
        (5, LATER, 5),
        (-5, None, 0),
        (0.5, None, 0.5),
        (None, LATER, 60),
        (None, LATER.astimezone(), 60),
        (None, NOW + 7, 7),
        (None, LATER - timedelta(hours=1), 0),
    ],
)
def test_a_retry_is_due_after_its_delay_and_never_in_the_past(
    countdown: float | None, eta: datetime | float | None, delay: float
) -> None:
    assert run_at(NOW, countdown=countdown, eta=eta) == NOW + delay


def test_a_naive_eta_is_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        run_at(NOW, eta=datetime(2026, 1, 1))  # noqa: DTZ001


def test_giving_up_raises_what_the_retry_was_for() -> None:
    exc = OSError("gone")
    assert give_up(exc, name="t", id="1") is exc


def test_giving_up_without_a_cause_names_the_task_but_not_its_arguments() -> None:
    exc = give_up(None, name="shop.pay", id="42", args=("hunter2",), kwargs={"a": 1})
    assert isinstance(exc, MaxRetriesExceededError)
    assert "shop.pay[42]" in str(exc)
    assert "hunter2" not in str(exc)
    assert exc.task_args == ("hunter2",)
    assert exc.task_kwargs == {"a": 1}
