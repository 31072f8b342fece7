"""Real instances of quiesce for tests: started, talked to, stopped, and looked after for leaks."""

from harness.instance import Instance, Outcome, Pending, Reply, get, prepared, running
from harness.ports import Port, reserved_port
from harness.processes import Footprint, footprint

__all__ = [
    "Footprint",
    "Instance",
    "Outcome",
    "Pending",
    "Port",
    "Reply",
    "footprint",
    "get",
    "prepared",
    "reserved_port",
    "running",
]
