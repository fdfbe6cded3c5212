"""Checkpoints: what a task has the next attempt of the same call go on from.

A checkpoint travels in the envelope of the call's message, so the attempt after this one is
given it whichever way it comes about: a retry, a child or a worker that died, a stop, a
failed call that is run again. It is written by a note, in the worker's next step.

A worker that stops need not wait for such an attempt: at its next checkpoint that says it may,
it is ended and given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from liteq import serializers
from liteq.exceptions import Interrupted, MessageTooLarge

if TYPE_CHECKING:
    from liteq.ciphers import Cipher
    from liteq.context import Context
    from liteq.message import Message
    from liteq.signing import Signer

__all__ = ["MOST", "keep", "read"]

MOST: Final = 65_536  # bytes: it is read with the message, and written anew each time


def keep(
    request: Context,
    value: Any,
    signer: Signer | None,
    cipher: Cipher,
    *,
    interruptible: bool = False,
) -> None:
    """Have the next attempt of the call that runs go on from this. See `Task.checkpoint`."""
    data = serializers.dumps(value, "json", root="checkpoint", cipher=cipher)
    if len(data) > MOST:
        raise MessageTooLarge(
            f"a checkpoint of {len(data)} bytes is more than the {MOST} allowed: store the "
            "data elsewhere, and give its place as the checkpoint"
        )
    message = request.message
    if message is None:  # a direct call, which has no other attempt
        request.checkpoint = value
        return
    message = message._replace(checkpoint=None if value is None else data.decode())
    left = request.rewrite(message if signer is None else signer.sign(message))
    if left and interruptible and value is not None and _may_end(request, message):
        request.interrupted = True
        raise Interrupted("the worker stops: the call goes on from its checkpoint in another")


def _may_end(request: Context, message: Message) -> bool:
    """Tell whether the attempt can be given back: not if it is never to be started twice, or
    may expire before it is, nor if the task has already said what is to come of it."""
    starts_again = message.acks_late and message.expires_at is None
    said = request.retry or request.replaced or request.added
    return starts_again and said is None


def read(text: str | None, cipher: Cipher | None = None) -> Any:
    """Return the value of a checkpoint, None if there is none; its secrets stay encrypted
    without a cipher. Raises `DecodeError` for what another program wrote there, be it half a
    character, and `DecryptionError` for a secret that the cipher has no key for."""
    if text is None:
        return None
    return serializers.loads(text.encode("utf-8", "surrogatepass"), "json", ("json",), cipher)
