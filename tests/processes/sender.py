"""A process that sends the calls of a storm, in whatever version of liteq is on its path.

Each call is written down before it is sent, and then whether it was acknowledged: so that
whoever kills this process knows what must be there, and what may be.

`python sender.py URL LOG SEED FIRST OPTION`: the option is one that only later versions know,
and is given to some calls; "" for none.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

from liteq import Liteq
from liteq.exceptions import BrokerUnavailable, LiteqError
from processes.calls import Caller


def main(url: str, log: str, seed: str, first: str, option: str) -> int:
    app = Liteq("storm", broker=url, set_as_current=False)
    app.conf.task_publish_retry = False
    chance = random.Random(int(seed))
    caller = Caller(app, chance, int(first))
    sheet = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(*words: object) -> None:
        os.write(sheet, (json.dumps(words) + "\n").encode())

    while True:
        special = bool(option) and chance.random() < 0.1
        # A word in it makes who runs the message read all of its envelope.
        call = caller.one(**{option: {"keywords": 1}}) if special else caller.any()
        kind = "special call" if special else call.kind
        write("try", kind, call.ids, [caller.expected[id] for id in call.ids])
        began = time.monotonic()
        try:
            call.send()
        except BrokerUnavailable:
            write("unanswered")
        except LiteqError as exc:
            write("refused", str(exc))
            return 8
        else:
            write("ok", time.monotonic() - began, time.time())
        time.sleep(chance.uniform(0.02, 0.2))  # paces the storm


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
