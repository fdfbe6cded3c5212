"""How deep JSON is is told without parsing it, and what is too deep is not parsed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import jsonlimits
from liteq.exceptions import DecodeError
from liteq.serializers import MAX_DEPTH, dumps, loads

texts = st.text('[]{}"\\\n:,é', max_size=6)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def is_refused(data: bytes, limit: int) -> bool:
    try:
        jsonlimits.check(data, limit)
    except DecodeError:
        return True
    return False


@given(values, st.booleans(), st.integers(1, 8))
def test_the_depth_is_told_as_a_parser_would(value: Any, ascii: bool, limit: int) -> None:
    data = json.dumps(value, ensure_ascii=ascii).encode()
    assert is_refused(data, limit) == (depth(value) > limit)


BOMBS = {
    "lists": b"[" * 100_000 + b"]" * 100_000,
    "both": b'{"a":[' * 50_000 + b"]}" * 50_000,
    "never closed": b"[" * 500_000,
    "never closed objects": b'{"a":' * 100_000,
    "a comb": b"[[]" * 200_000 + b"]" * 200_000,
    "behind a string": b'["\\"",' + b"[" * 1000 + b"]" * 1001,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_what_is_too_deep_is_refused_at_once(bomb: bytes) -> None:
    began = time.process_time()
    with pytest.raises(DecodeError, match="too deep"):
        loads(bomb)
    assert time.process_time() - began < 1.0


def test_whatever_may_be_written_can_be_read() -> None:
    value: Any = "x" * 2000
    for _ in range(MAX_DEPTH - 1):
        value = ({1: value},)[0]  # four levels of JSON each
    assert loads(dumps(value)) == value


def test_a_number_of_too_many_digits_is_refused() -> None:
    with pytest.raises(DecodeError, match="digits"):
        loads(b"[" + b"9" * 5000 + b"]")
    assert loads(b'["' + b"9" * 5000 + b'"]') == ["9" * 5000]
    assert loads(dumps(10**9999)) == 10**9999
