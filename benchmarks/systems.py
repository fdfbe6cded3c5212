"""What is compared: each system with the settings that its own documentation recommends."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

__all__ = ["LITEQ", "SYSTEMS", "System"]


class System(NamedTuple):
    """A queue, driven through `module`, which only processes of a `Site` import.

    A module has `enqueue(number)`, which returns a handle, and `wait(handle)`; both may be
    coroutines. It may have `setup()`, `teardown()`, `result(id)`, `enqueue_sleep(number,
    milliseconds)`, `chord(size)` and `chain(size)`, which return the final result.
    """

    name: str
    title: str
    module: str
    requires: tuple[str, ...]  # of its own environment; none: the one that runs this
    imports: tuple[str, str]  # the package, and the class that every user of it needs
    worker: str  # a program of its environment and what it is given; {n}: children
    store: Literal["file", "redis"]
    settings: str
    tasks: int = 20_000  # at most so many are drained: the slow ones would take minutes
    workers: int = 1  # how many such programs make up two children


LITEQ: Final = System(
    "liteq",
    "liteq (SQLite)",
    "on_liteq",
    (),
    ("import liteq", "import liteq; liteq.Liteq"),
    "python -m liteq -q -A benchmarks.on_liteq worker -l warning -c {n}",
    "file",
    "durability normal; 2 prefork children",
)
LITEQ_REDIS: Final = LITEQ._replace(
    name="liteq-redis", title="liteq (Redis)", store="redis", settings="2 prefork children"
)
SYSTEMS: Final = {
    system.name: system
    for system in (
        LITEQ,
        LITEQ_REDIS,
        System(
            "celery",
            "Celery (Redis)",
            "on_celery",
            ("celery[redis]>=5.6",),
            ("import celery", "import celery; celery.Celery"),
            "python -m celery -A benchmarks.on_celery worker -l WARNING -c {n}",
            "redis",
            "defaults; 2 prefork children",
        ),
        System(
            "dramatiq",
            "Dramatiq (Redis)",
            "on_dramatiq",
            ("dramatiq[redis]>=2",),
            ("import dramatiq", "import dramatiq; dramatiq.actor"),
            "python -m dramatiq benchmarks.on_dramatiq -p {n}",
            "redis",
            "defaults: 2 processes of 8 threads; results stored",
            10_000,
        ),
        System(
            "huey",
            "Huey (SQLite)",
            "on_huey",
            ("huey>=3", "redis"),
            ("import huey", "import huey; huey.SqliteHuey"),
            "python -m huey.bin.huey_consumer benchmarks.on_huey.huey -q -k process -w {n}",
            "file",
            "without fsync, which is faster than durability normal; 2 processes",
        ),
        System(
            "huey-redis",
            "Huey (Redis)",
            "on_huey",
            ("huey>=3", "redis"),
            ("import huey", "import huey; huey.RedisHuey"),
            "python -m huey.bin.huey_consumer benchmarks.on_huey.huey -q -k process -w {n}",
            "redis",
            "defaults; 2 processes",
            10_000,
        ),
        System(
            "rq",
            "RQ (Redis)",
            "on_rq",
            ("rq>=2",),
            ("import rq", "import rq; rq.Queue"),
            "rq worker -q -u {redis} -P . -w rq.worker.SimpleWorker bench",
            "redis",
            "2 workers of the class that does not fork for each job",
            4_000,
            workers=2,
        ),
        System(
            "taskiq",
            "TaskIQ (Redis)",
            "on_taskiq",
            ("taskiq>=0.12", "taskiq-redis>=1"),
            ("import taskiq", "import taskiq; taskiq.TaskiqScheduler"),
            "taskiq worker benchmarks.on_taskiq:broker -w {n} --log-level WARNING",
            "redis",
            "Redis streams, which acknowledge; 2 processes",
            5_000,
        ),
        System(
            "saq",
            "SAQ (Redis)",
            "on_saq",
            ("saq[redis,hiredis]>=0.26", "typing_extensions"),
            ("import saq", "import saq; saq.Queue"),
            "saq benchmarks.on_saq.settings --workers {n} -q",
            "redis",
            "defaults: 2 processes of 10 jobs",
            4_000,
        ),
        System(
            "streaq",
            "streaQ (Redis)",
            "on_streaq",
            ("streaq>=7",),
            ("import streaq", "import streaq; streaq.Worker"),
            "streaq run benchmarks.on_streaq:worker --workers {n}",
            "redis",
            "defaults: 2 processes of 16 tasks",
            5_000,
        ),
        System(
            "flexiq",
            "FlexiQ (SQLite)",
            "on_flexiq",
            ("flexiq>=2",),
            ("import flexiq", "import flexiq; flexiq.Queue"),
            "flexiq worker --app benchmarks.on_flexiq:queue --pool thread",
            "file",
            "2 threads: its prefork pool needs a later Python",
            300,
        ),
    )
}
