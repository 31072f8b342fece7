"""The tree of our errors.

``str(error)`` is a whole sentence: the thing, what happened, what to do next.
"""


class QuiesceError(Exception):
    """Anything that quiesce reports on purpose."""


class ConfigError(QuiesceError):
    """What the user asked for cannot be meant; nothing was changed."""


class ProtocolError(QuiesceError):
    """A peer on one of our sockets said something that the protocol does not allow."""


class PeerClosed(ProtocolError):
    """The peer's end of a channel is gone: an event, and the only one that ends a channel.

    From ``send`` and ``flush`` it means that nothing can be said any more; what the peer said
    before it left can still be read.
    """


class FdPassingError(QuiesceError):
    """Descriptors could not be sent, or did not arrive; those that did have been closed."""


class ListenError(QuiesceError):
    """A listening socket cannot be had."""


class SpawnError(QuiesceError):
    """A worker process could not be started at all."""


class ControlError(QuiesceError):
    """The control socket cannot be used, by us or by a client."""


class IllegalTransition(QuiesceError):
    """A table has no such row: a bug of ours, never a peer's fault."""
