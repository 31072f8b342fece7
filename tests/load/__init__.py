"""A load client of our own: it counts every way in which a server can let a client down."""

from load.client import LoadClient, LoadError
from load.report import Failure, Fresh, Report, Trouble
from load.spec import Plan, Traffic, busy, download, everything, fresh, idle, late, pipelined, post, upload

__all__ = [
    "Failure",
    "Fresh",
    "LoadClient",
    "LoadError",
    "Plan",
    "Report",
    "Traffic",
    "Trouble",
    "busy",
    "download",
    "everything",
    "fresh",
    "idle",
    "late",
    "pipelined",
    "post",
    "upload",
]
