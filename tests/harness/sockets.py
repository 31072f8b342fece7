"""Whose a TCP connection is, by the kernel's books."""

from __future__ import annotations

import contextlib
import os
import re


def client_ports(pid: int, server_port: int) -> set[int]:
    """Ports of the clients whose connections to ``server_port`` (of 127.0.0.1) the process holds.

    Source: proc_pid_fd(5), proc_net_tcp(5).
    """
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
            inodes |= {found[1]} if found else set()
    ports = set()
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            _, local, remote, _, *rest = line.split()
            if int(local.rpartition(":")[2], 16) == server_port and rest[5] in inodes:
                ports.add(int(remote.rpartition(":")[2], 16))
    return ports - {0}  # the listener's own line
