"""The fixtures that users of pytest get, in test suites of their own."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

# An installation made before the plugin was there does not know its entry point.
INSTALLED = any(found.name == "liteq" for found in entry_points(group="pytest11"))
PLUGIN = () if INSTALLED else ("-p", "liteq.pytest_plugin")

SHOP = """
    import os

    from liteq import Liteq

    app = Liteq("shop", broker="redis://localhost:1/0", backend="redis://localhost:1/1")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task
    def pid() -> int:
        return os.getpid()

    @app.task
    def limit() -> int:
        return app.conf.task_max_body_size
"""


def run(pytester: pytest.Pytester, code: str, *, ini: str = "", **files: str) -> None:
    """Run a test file, all of whose tests are to pass."""
    outcome = outcome_of(pytester, code, ini=ini, **files)
    assert outcome.ret == 0
    assert "passed" in outcome.parseoutcomes()


def outcome_of(
    pytester: pytest.Pytester, code: str, *, ini: str = "", **files: str
) -> pytest.RunResult:
    pytester.makepyfile(test_shop=code, **files)
    pytester.makeini(f"[pytest]\npythonpath = .\nfilterwarnings = error\n{ini}\n")
    return pytester.runpytest_subprocess(*PLUGIN, "--strict-markers", "-p", "no:cacheprovider")


def test_the_test_mode_and_its_clock_are_fixtures(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        import liteq

        def test_mail(liteq_app, liteq_inline, liteq_clock):
            @liteq_app.task
            def remind(who):
                return f"hello {who}"

            result = remind.apply_async(("ann",), countdown=3600)
            liteq_inline.assert_enqueued(remind, countdown=3600)
            assert liteq_inline.drain() == []
            liteq_clock.advance(3600)
            liteq_inline.drain()
            assert result.get() == "hello ann"
            assert liteq.current_app == liteq_app
            assert liteq_clock is liteq_app.clock

        def test_next(liteq_app, liteq_inline):
            liteq_inline.refute_enqueued()
            assert not [name for name in liteq_app.tasks if name.endswith("remind")]
        """,
    )


def test_the_app_of_the_project_is_on_a_store_of_the_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITEQ_BROKER_URL", "sqlite:///production")
    run(
        pytester,
        """
        import pytest
        from shop import add, app

        @pytest.mark.parametrize("number", [1, 2])
        def test_add(liteq_app, number):
            assert liteq_app is app
            assert app.broker.counts() == {}
            add.delay(1, number)
            assert app.broker.counts() == {"default": {"queued": 1}}

        def test_left_as_it_was():
            assert app.broker_url == "sqlite:///production"
            assert app.conf.result_backend == "redis://localhost:1/1"
            assert app._broker is None
        """,
        ini="liteq_app = shop:app",
        shop=SHOP,
    )


def test_an_app_that_cannot_be_found_is_named(pytester: pytest.Pytester) -> None:
    outcome = outcome_of(
        pytester, "def test_add(liteq_app): ...", ini="liteq_app = nowhere:app"
    )
    outcome.stdout.fnmatch_lines(["*no module 'nowhere' (the pytest option liteq_app)*"])
    assert outcome.parseoutcomes() == {"errors": 1}


def test_a_marker_sets_what_one_test_needs(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        import pytest

        pytestmark = pytest.mark.liteq(task_default_queue="module", task_default_priority=1)

        @pytest.fixture
        def liteq_config():
            return {"task_default_priority": 9, "task_acks_late": False}

        @pytest.mark.liteq(task_default_queue="function", broker_url="memory://")
        def test_marked(liteq_app):
            conf = liteq_app.conf
            assert conf.task_default_queue == "function"
            assert conf.task_default_priority == 1
            assert conf.task_acks_late is False
            assert liteq_app.broker.folder is None

        @pytest.mark.liteq(task_always_eager=True)
        def test_eager(liteq_app):
            assert liteq_app.conf.task_default_queue == "module"
            assert liteq_app.task(lambda: 3, name="three").delay().result == 3
        """,
    )


def test_a_marker_takes_settings_only(pytester: pytest.Pytester) -> None:
    outcome = outcome_of(
        pytester,
        """
        import pytest

        @pytest.mark.liteq("eager")
        def test_marked(liteq_app): ...
        """,
    )
    outcome.stdout.fnmatch_lines(["*@pytest.mark.liteq takes settings by keyword*"])


def test_a_suite_may_say_how_apps_stores_and_workers_are_made(
    pytester: pytest.Pytester,
) -> None:
    run(
        pytester,
        """
        import pytest

        @pytest.fixture(scope="session")
        def liteq_parameters():
            return {"main": "shop", "task_default_queue": "orders"}

        @pytest.fixture(scope="session")
        def liteq_worker_parameters():
            return {"concurrency": 2, "hostname": "tester@%h", "queues": ["orders", "mail"]}

        @pytest.fixture
        def liteq_broker_url(tmp_path):
            return f"sqlite://{tmp_path}/mine"

        def test_all(liteq_app, liteq_worker, tmp_path):
            assert liteq_app.main == "shop"
            assert liteq_app.broker.folder == tmp_path / "mine"
            (worker,) = liteq_app.broker.workers()
            assert worker.name.startswith("tester@")
            assert worker.queues == ("orders", "mail")
            assert worker.concurrency == 2
        """,
    )


def test_a_worker_in_a_thread_is_a_fixture(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        import os
        from shop import add, pid

        def test_add(liteq_worker):
            assert add.delay(2, 3).get(timeout=10) == 5
            assert pid.delay().get(timeout=10) == os.getpid()

        def test_a_task_of_the_test(liteq_app, liteq_worker):
            @liteq_app.task
            def mul(x, y):
                return x * y

            liteq_worker.reload()  # as in Celery's manual
            assert mul.delay(4, 4).get(timeout=10) == 16
        """,
        ini="liteq_app = shop:app",
        shop=SHOP,
    )


@pytest.mark.process
def test_a_worker_with_children_is_a_fixture(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        import os
        import pytest
        from shop import add, limit, pid

        @pytest.mark.liteq(task_max_body_size=12345)
        def test_add(liteq_prefork_worker):
            assert add.delay(2, 3).get(timeout=10) == 5
            assert pid.delay().get(timeout=10) not in (os.getpid(), liteq_prefork_worker.pid)
            assert limit.delay().get(timeout=10) == 12345
        """,
        ini="liteq_app = shop:app",
        shop=SHOP,
    )


def test_a_worker_with_children_needs_an_app_that_can_be_imported(
    pytester: pytest.Pytester,
) -> None:
    outcome = outcome_of(pytester, "def test_add(liteq_prefork_worker): ...")
    outcome.stdout.fnmatch_lines(
        ["*is not an attribute of a module*(is the ini option liteq_app set?)"]
    )
    assert outcome.parseoutcomes() == {"errors": 1}


def test_who_does_not_use_it_loads_nothing_of_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            with open("loaded.txt", "w") as file:
                file.write(" ".join(sys.modules))
        """
    )
    run(pytester, "def test_nothing(): ...")
    loaded = set((pytester.path / "loaded.txt").read_text().split())
    ours = {name for name in loaded if name.partition(".")[0] in ("liteq", "apsw", "redis")}
    assert ours == {"liteq", "liteq.pytest_plugin"}
