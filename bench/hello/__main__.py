"""Compare what a request costs: our engine, uvicorn and C libmicrohttpd, in one run.

    ./dev sh python bench/hello [--rounds N] [--seconds S] [--servers A,B] [--scenarios A,B] [--json FILE]

The figure to trust is the server's CPU time for each request.  The server has one core and the client another, the
servers take turns (A B C, A B C, …), and ratios are taken within a turn.  Needs a C compiler; for comparison
libmicrohttpd-dev (apt) and uvicorn, which is installed by pip into a temporary virtual environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import Results, Sample, tables, verdicts
from scenarios import SCENARIOS, Scenario
from servers import LABELS, Server, Workshop, say

_ATTEMPTS = 10
_FEWEST = 100  # answers a second of a turn that counts


def measure(server: Server, scenario: Scenario, workshop: Workshop, seconds: float, core: int) -> Sample:
    requests = workshop.requests / scenario.name
    command = [
        str(workshop.load), str(server.port), str(scenario.connections), str(seconds), str(scenario.depth),
        "close" if scenario.close else "keep", str(requests),
    ]  # fmt: skip
    for _ in range(_ATTEMPTS):
        sample = _turn(server, command, core, _FEWEST * seconds)
        if sample is not None:
            return sample
    sys.exit(
        f"bench: {server.name}, {scenario.name}: hardly an answer in {seconds:g} s; this machine is too busy"
    )


def _turn(server: Server, command: list[str], core: int, fewest: float) -> Sample | None:
    """One turn; None if others had both cores nearly all the time."""
    before = server.cpu_s()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    used = server.cpu_s() - before
    if done.returncode:
        sys.exit(f"bench: {server.name}: {done.stderr}")
    answers, took, faults = (float(word) for word in done.stdout.split())
    if answers < fewest or not used:
        return None
    return Sample(used / answers * 1e6, answers / took, int(faults))


def compare(
    servers: list[Server], scenarios: list[Scenario], workshop: Workshop, args: argparse.Namespace
) -> Results:
    cores = sorted(os.sched_getaffinity(0))
    results = Results()
    for scenario in scenarios:
        scenario.write(workshop.requests / scenario.name)
        for server in servers:  # what is made at the first request is not measured
            measure(server, scenario, workshop, 0.1, cores[-1])
        for _ in range(args.rounds):
            for server in servers:
                sample = measure(server, scenario, workshop, args.seconds, cores[-1])
                results.add(scenario.name, server.name, sample)
        say(f"{scenario.name} is done")
    return results


def chosen(text: str, known: list[str], what: str) -> list[str]:
    names = text.split(",") if text else known
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"bench: no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/hello", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each server (7)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="length of a turn (0.5)")
    parser.add_argument("--servers", default="", metavar="A,B", help=f"of {', '.join(LABELS)} (all)")
    parser.add_argument(
        "--scenarios", default="", metavar="A,B", help="of " + ", ".join(s.name for s in SCENARIOS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, too")
    parser.add_argument(
        "--venv", type=Path, metavar="DIR", help="keep the virtual environment here, or use this one"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("one core for server and client: requests/s mean nothing here")
    names = [scenario.name for scenario in SCENARIOS]
    wanted = chosen(args.scenarios, names, "scenario")
    with tempfile.TemporaryDirectory(prefix="quiesce-bench-") as directory:
        workshop = Workshop(Path(directory), args.venv)
        there = workshop.prepare(chosen(args.servers, list(LABELS), "server"))
        servers: list[Server] = []
        try:
            for name in there:
                servers.append(Server.start(name, workshop, cores[0]))
            results = compare(servers, [s for s in SCENARIOS if s.name in wanted], workshop, args)
        finally:
            for server in servers:
                server.stop()
        versions = workshop.versions()
    if args.json:
        args.json.write_text(
            json.dumps({"versions": versions, "scenarios": results.as_json()}, indent=1) + "\n"
        )
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{args.rounds} rounds of {args.seconds:g} s; median (least–most)\n")
    print(tables(results))
    print(verdicts(results))


if __name__ == "__main__":
    main()
