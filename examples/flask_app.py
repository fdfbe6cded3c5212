"""A Flask app whose handlers hand work to tasks.

Run:  python examples/flask_app.py

Here a worker runs beside the app, in threads. In production it is a process of its own:
flask --app examples/flask_app.py liteq worker

Prints:
    POST /users/ada -> 202
    GET /tasks/… -> SUCCESS: Hello, ada
"""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app

from liteq.contrib.flask import FlaskLiteq

queue = FlaskLiteq()


@queue.task
def welcome(user: str) -> str:
    return f"{current_app.config['GREETING']}, {user}"  # within the app's context


def create_app() -> Flask:
    site = Flask("shop")
    site.config["GREETING"] = "Hello"
    site.config.from_prefixed_env()  # FLASK_LITEQ_BROKER_URL=…
    queue.init_app(site)

    @site.post("/users/<name>")
    def register(name: str) -> Any:
        return {"task": welcome.delay(name).id}, 202

    @site.get("/tasks/<id>")
    def status(id: str) -> Any:
        result = queue.AsyncResult(id)
        return {"state": result.state, "result": result.result}

    return site


if __name__ == "__main__":
    site = create_app()
    client = site.test_client()
    with queue.worker(concurrency=1):
        answer = client.post("/users/ada")
        print("POST /users/ada ->", answer.status_code)

        queue.AsyncResult(answer.json["task"]).get(timeout=10)
        seen = client.get(f"/tasks/{answer.json['task']}").json
        print(f"GET /tasks/… -> {seen['state']}: {seen['result']}")
