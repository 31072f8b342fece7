"""The load client's process: plan in on the first line of stdin, messages both ways, one report at the end.

Messages are lines.  We say ``started`` when every client had its first answer, ``answers N`` when an
order ``answers K`` (K more good answers, counted from when the order is read) is fulfilled, and
``report JSON`` last.  We stop at ``stop``, at EOF, and at the limits of the plan.
"""

from __future__ import annotations

import asyncio
import gc
import sys

from load.spec import Plan
from load.traffic import KINDS, Client, Run


async def main() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    plan = Plan.from_json((await orders.readline()).decode())
    run = Run(plan)
    clients = [
        Client(run, traffic, index)
        for index, traffic in enumerate(t for t in plan.traffic for _ in range(t.connections))
    ]
    wanted: list[int] = []
    started = False

    def on_answer() -> None:
        nonlocal started
        if not started and len(run.spoke) == len(clients):
            started = True
            say("started")
        while wanted and run.total >= wanted[0]:
            wanted.pop(0)
            say(f"answers {run.total}")

    async def listen() -> None:
        while line := (await orders.readline()).decode().strip():
            if line.startswith("answers "):
                wanted.append(run.total + int(line.split()[1]))
                wanted.sort()
            elif line == "stop":
                break
        run.stop.set()

    run.on_answer = on_answer
    loop.call_later(plan.max_seconds, run.stop.set)
    helpers = [asyncio.create_task(listen()), asyncio.create_task(run.watch_self())]
    # A collection of many tens of thousands of records would look like a stall of the server.
    gc.freeze()
    gc.disable()
    try:
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.live(KINDS[client.traffic.kind]))
    finally:
        for helper in helpers:
            helper.cancel()
    say("report " + run.finish().to_json())
    transport.close()


def say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.exit(0)  # whoever asked is gone


if __name__ == "__main__":
    asyncio.run(main())
