"""Test what a program enqueues and when it runs, without a worker and without waiting.

Run:  python examples/testing_mode.py

`liteq.testing.inline` keeps calls in memory and stops the clock; `drain()` runs what is due.
For pytest, the fixtures `liteq_inline` and `liteq_clock` do the same.

Prints:
    enqueued: testing_mode.remind('ann')  in queue 'mail', due 2030-05-18 12:00:00+00:00
    due now: 0
    a day later: ['RETRY']
    in the end: ['SUCCESS'] at 12:01
    no such call is enqueued: testing_mode.remind args=('bob',)
    There is:
      testing_mode.remind('ann')  in queue 'mail', run already: succeeded
          args[0]     wanted 'bob', is 'ann'
"""

from __future__ import annotations

from datetime import UTC, datetime

from liteq import Liteq
from liteq.testing import inline

app = Liteq("shop", timezone="UTC")


@app.task(bind=True, queue="mail", default_retry_delay=60)
def remind(self, who: str) -> str:
    if not self.request.retries:
        raise self.retry(exc=ConnectionError("the mail server is closed"))
    return f"reminded {who}"


def sign_up(who: str) -> None:
    """The code under test."""
    remind.apply_async((who,), countdown=86_400)


if __name__ == "__main__":
    with inline(app, at=datetime(2030, 5, 17, 12, tzinfo=UTC)) as t:
        sign_up("ann")
        (call,) = t.assert_enqueued(remind, args=("ann",), queue="mail", countdown=86_400)
        print("enqueued:", call)
        print("due now:", len(t.drain()))

        t.clock.advance(86_400)
        print("a day later:", [run.state for run in t.drain()])

        runs = t.drain(with_scheduled=True)
        print("in the end:", [run.state for run in runs], f"at {app.now():%H:%M}")

        try:
            t.assert_enqueued(remind, args=("bob",))
        except AssertionError as failure:
            print(failure)
