"""What `ready_path` is answered: shall a load balancer send requests to this instance?  Pure."""

from quiesce.worker.core.response import Response

_FIELDS = {"Cache-Control": "no-store"}
_CLOSE = {**_FIELDS, "Connection": "close"}

_READY = Response(b"ready\n", headers=_FIELDS)
_READY_ELSEWHERE = Response(b"ready\n", headers=_CLOSE)
_NOT_READY = Response(b"not ready\n", 503, _CLOSE)
# What the figures see; the client sees the head.  They count the request and its bytes, but no 5xx: this
# answer is what somebody asked for, and no release may be rolled back for it.
_NOT_READY.status = 0


def readiness(*, unready: bool, accepts: bool) -> Response:
    """The answer.

    Args:
        unready: The instance is about to leave its load balancer.
        accepts: This worker accepts.  If not while the instance is ready, others do (a rollout has
            quiesced this one): a 503 would take a healthy instance out of service, so the
            answer is still 200, but the last on its connection: the next check finds one of the others.
    """
    if unready:
        return _NOT_READY
    return _READY if accepts else _READY_ELSEWHERE


def as_sent(path: str) -> bytes:
    """A path of the configuration as it stands in a request target; what may not stand there is percent-encoded."""
    return b"".join(b"%c" % octet if 0x21 <= octet <= 0x7E else b"%%%02X" % octet for octet in path.encode())
