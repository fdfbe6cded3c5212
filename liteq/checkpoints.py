"""Checkpoints: what a task has the next attempt of the same call go on from.

A checkpoint travels in the envelope of the call's message, so the attempt after this one is
given it whichever way it comes about: a retry, a child or a worker that died, a stop, a
failed call that is run again. It is written by a note, in the worker's next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from liteq import serializers
from liteq.exceptions import MessageTooLarge

if TYPE_CHECKING:
    from liteq.context import Context
    from liteq.signing import Signer

__all__ = ["MOST", "keep", "read"]

MOST: Final = 65_536  # bytes: it is read with the message, and written anew each time


def keep(request: Context, value: Any, signer: Signer | None) -> None:
    """Have the next attempt of the call that runs go on from this. See `Task.checkpoint`."""
    data = serializers.dumps(value, "json", root="checkpoint")
    if len(data) > MOST:
        raise MessageTooLarge(
            f"a checkpoint of {len(data)} bytes is more than the {MOST} allowed: keep what it "
            "says elsewhere, and where that is as the checkpoint"
        )
    message = request.message
    if message is None:  # a direct call, which has no other attempt
        request.checkpoint = value
        return
    message = message._replace(checkpoint=None if value is None else data.decode())
    request.rewrite(message if signer is None else signer.sign(message))


def read(text: str | None) -> Any:
    """Return the value of a checkpoint; None if there is none."""
    return None if text is None else serializers.loads(text.encode(), "json", accept=("json",))
