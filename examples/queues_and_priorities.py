"""Which queue a call goes to, and which call goes first.

Run:  python examples/queues_and_priorities.py

Routes are settings, so the code that calls a task does not need to know them. Within its
queues, a worker takes the highest priority first (9 before 0), then the oldest.

Prints:
    resize goes to images
    mail goes to default
    mail to the boss goes to urgent
    in this order: mail 9, mail 5, mail 0 (first), mail 0 (second)
"""

from __future__ import annotations

from liteq import Liteq

app = Liteq("queues", task_routes={"*.resize": "images"})
done: list[str] = []


@app.task
def resize(path: str) -> None: ...


@app.task
def mail(text: str) -> None:
    done.append(f"mail {text}")


if __name__ == "__main__":
    print("resize goes to", resize.delay("cat.png").queue)
    print("mail goes to", mail.delay("0 (first)").queue)
    print("mail to the boss goes to", mail.apply_async(["boss"], queue="urgent").queue)
    mail.delay("0 (second)")
    mail.apply_async(["9"], priority=9)
    mail.apply_async(["5"], priority=5)

    app.run_until_empty(queues=["default"])  # one at a time; the other two are left alone
    print("in this order:", ", ".join(done))
