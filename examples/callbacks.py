"""What follows a call: one task after a success, another after a failure.

Run:  python examples/callbacks.py

The follow-ups are stored together with the call, and become ready in the same transaction
that records how it ended.

Prints:
    publish: published CAT.PNG
    clean_up: after ValueError: no such picture: dog.png
    the call itself: FAILURE
"""

from __future__ import annotations

from liteq import Liteq

app = Liteq("callbacks")


@app.task
def convert(name: str) -> str:
    if name != "cat.png":
        raise ValueError(f"no such picture: {name}")
    return name.upper()


@app.task
def publish(picture: str) -> str:  # gets the result of convert
    return f"published {picture}"


@app.task
def clean_up(request, exc, traceback) -> str:
    return f"after {type(exc).__name__}: {exc}"


if __name__ == "__main__":
    with app.worker(concurrency=2):
        then = publish.s()
        published = then.freeze()  # gives it an id, so that its result can be read
        convert.apply_async(["cat.png"], link=then)
        print("publish:", published.get(timeout=10))

        otherwise = clean_up.s()
        cleaned = otherwise.freeze()
        result = convert.apply_async(["dog.png"], link_error=otherwise)
        print("clean_up:", cleaned.get(timeout=10))
        print("the call itself:", result.state)
