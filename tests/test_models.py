"""Tasks made with `pydantic=True`: dicts become models, and models dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from api import app_in_memory
from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator

from liteq import BoundTask, Liteq

seen: list[Any] = []


class Order(BaseModel):
    id: int
    price: float = 1.0

    @field_validator("id")
    @classmethod
    def remember(cls, value: int, info: ValidationInfo) -> int:
        seen.append(info.context)
        return value


class Receipt(BaseModel):
    total: float


@pytest.fixture
def app() -> Iterator[Liteq]:
    seen.clear()
    with app_in_memory() as app:
        yield app


def ran(app: Liteq, result: Any) -> Any:
    app.run_until_empty()
    return result.get(timeout=0)


@pytest.mark.parametrize("order", [{"id": "7", "price": 2}, Order(id=7, price=2)])
def test_annotated_arguments_are_validated_and_a_returned_model_is_dumped(
    app: Liteq, order: Any
) -> None:
    @app.task(pydantic=True)
    def charge(order: Order, times: int, more: Order | None = None) -> Receipt:
        assert type(order) is Order
        assert more is None
        return Receipt(total=order.price * times)

    assert ran(app, charge.delay(order, times=3)) == {"total": 6.0}


def test_bound_and_awaited_tasks_take_models_too(app: Liteq) -> None:
    @app.task(pydantic=True, bind=True)
    async def charge(self: BoundTask, order: Order) -> Any:
        return [self.request.id, order.id]

    result = charge.delay({"id": 7})  # type: ignore[arg-type]

    assert ran(app, result) == [result.id, 7]


def test_a_value_that_is_no_such_model_fails_the_task(app: Liteq) -> None:
    @app.task(pydantic=True)
    def charge(order: Order) -> None: ...

    result = charge.delay({"id": "x"})  # type: ignore[arg-type]
    app.run_until_empty()

    assert result.failed()
    assert "valid integer" in str(result.result)
    with pytest.raises(ValidationError):
        charge({"id": "x"})  # type: ignore[arg-type]


def test_validation_is_strict_and_has_a_context_if_the_task_says_so(app: Liteq) -> None:
    @app.task(
        pydantic=True,
        pydantic_strict=True,
        pydantic_context={"shop": 1},
        pydantic_dump_kwargs={"by_alias": True},
    )
    def charge(order: Order) -> None: ...

    with pytest.raises(ValidationError):
        charge({"id": "7"})  # type: ignore[arg-type]
    charge({"id": 7})  # type: ignore[arg-type]

    assert seen[-1] == {"shop": 1, "celery_app": app, "celery_task_name": charge.name}


def test_arguments_are_still_checked_at_the_call(app: Liteq) -> None:
    @app.task(pydantic=True)
    def charge(order: Order) -> None: ...

    with pytest.raises(TypeError, match="missing 1 required"):
        charge.delay()  # type: ignore[call-arg]
