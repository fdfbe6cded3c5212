"""A workflow: fetch, fan out, join, publish.

Run:  python examples/workflow.py

Every call of it is a row in the store before `delay()` returns. The join starts in the
same transaction that records the end of the last member.

Prints:
    published: cat.png as 64 px, 256 px, 1024 px
    without the broken one: cat.png as 64 px, 256 px
    the chord failed: no memory for 4096 px
    errors told: 1
"""

from __future__ import annotations

from liteq import Liteq, chain, chord, group

app = Liteq("workflow")


@app.task
def fetch(name: str) -> str:
    return f"{name}.png"


@app.task
def resize(picture: str, width: int) -> tuple[str, int]:  # gets the result of fetch
    if width > 2000:
        raise MemoryError(f"no memory for {width} px")
    return picture, width


@app.task
def join(pictures: list[tuple[str, int]]) -> str:  # gets the results of all resizes
    widths = ", ".join(f"{width} px" for _, width in pictures)
    return f"{pictures[0][0]} as {widths}"


@app.task
def publish(page: str) -> str:
    return page


@app.task
def tell(request, exc, traceback) -> int:
    return 1


if __name__ == "__main__":
    with app.worker(concurrency=2):
        sizes = group(resize.s(width) for width in (64, 256, 1024))
        result = chain(fetch.s("cat"), sizes, join.s(), publish.s()).delay()
        print("published:", result.get(timeout=10))

        some = [resize.s("cat.png", width) for width in (64, 256, 4096)]
        result = chord(some, join.s(), on_error="skip").delay()
        print("without the broken one:", result.get(timeout=10))

        strict = chord(some, join.s())
        told = tell.s()
        promised = told.freeze()
        strict.link_error(told)
        try:
            strict.delay().get(timeout=10)
        except MemoryError as error:
            print("the chord failed:", error)
        print("errors told:", promised.get(timeout=10))
