"""Show how far a task has come.

Run:  python examples/progress.py

Prints:
    PROGRESS  1 of 3  33%  reading
    PROGRESS  2 of 3  67%  sorting
    PROGRESS  3 of 3 100%  writing
    SUCCESS   report.pdf
"""

from __future__ import annotations

import time

from liteq import Liteq

app = Liteq("progress")


@app.task(bind=True)
def report(self) -> str:
    for number, step in enumerate(("reading", "sorting", "writing"), 1):
        self.progress(number, 3, step)
        time.sleep(0.4)
    return "report.pdf"


if __name__ == "__main__":
    with app.worker(concurrency=1):
        result = report.delay()
        seen = None
        while not result.ready():
            now = result.progress
            if now is not None and now != seen:
                seen = now
                print(f"PROGRESS  {now.done} of {now.total} {now.fraction:4.0%}  {now.message}")
            time.sleep(0.05)
        print(f"{result.state}   {result.get()}")
