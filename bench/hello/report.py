"""Figures to tables.  Ratios are taken within a round, where both servers had the same neighbours; then the median."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from scenarios import SCENARIOS
from servers import LABELS


@dataclass
class Sample:
    """One server in one scenario of one round."""

    cpu_us: float  # of the server, for each request
    rate: float  # requests a second
    faults: int


@dataclass
class Results:
    """By scenario and server, a sample for each round."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def add(self, scenario: str, server: str, sample: Sample) -> None:
        self.samples.setdefault(scenario, {}).setdefault(server, []).append(sample)

    def ratios(self, scenario: str, dear: str, cheap: str) -> list[float]:
        """How often the CPU of ``cheap`` goes into that of ``dear``, for each round."""
        of = self.samples[scenario]
        pairs = zip(of.get(dear, ()), of.get(cheap, ()), strict=False)
        return sorted(above.cpu_us / below.cpu_us for above, below in pairs)

    def as_json(self) -> dict[str, Any]:
        return {
            scenario: {
                server: {
                    "cpu_us": [round(sample.cpu_us, 3) for sample in samples],
                    "requests_per_s": [round(sample.rate) for sample in samples],
                    "faults": sum(sample.faults for sample in samples),
                }
                for server, samples in servers.items()
            }
            for scenario, servers in self.samples.items()
        }


def tables(results: Results) -> str:
    return "\n".join(
        _table(results, scenario.name, scenario.what)
        for scenario in SCENARIOS
        if scenario.name in results.samples
    )


def _table(results: Results, scenario: str, what: str) -> str:
    lines = [
        f"### {scenario}: {what}\n",
        "| server | CPU µs/request | requests/s | cheaper than uvicorn | dearer than libmicrohttpd |",
        "|---|---|---|---|---|",
    ]
    for server, samples in results.samples[scenario].items():
        cpu = [sample.cpu_us for sample in samples]
        rate = median(sample.rate for sample in samples)
        faults = sum(sample.faults for sample in samples)
        lines.append(
            f"| {LABELS[server]}{f' ({faults} faults)' if faults else ''} | {_spread(cpu)} | {rate:,.0f} "
            f"| {_ratio(results.ratios(scenario, 'uvicorn', server))} "
            f"| {_ratio(results.ratios(scenario, server, 'mhd'))} |"
        )
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _ratio(ratios: list[float]) -> str:
    return f"{_spread(ratios)} ×" if ratios else "–"


# What this project promises: (scenario, server, against, at least, at most), as ratios of CPU for each request.
TARGETS: tuple[tuple[str, str, str, float, float], ...] = (
    ("hello", "native", "uvicorn", 3.0, 0),
    ("hello", "native", "mhd", 0, 1.3),
    ("hello", "wsgi", "uvicorn", 2.0, 0),
    ("hello", "wsgi-pool", "uvicorn", 1.5, 0),
    ("hello", "asgi", "uvicorn", 1.8, 0),
    ("pipelined", "native", "uvicorn", 10.0, 0),
    ("close", "native", "uvicorn", 2.0, 0),
    ("close", "native", "mhd", 0, 1.3),
    ("browser", "native", "uvicorn", 2.5, 0),
    ("post", "native", "uvicorn", 1.5, 0),
    ("post", "wsgi", "uvicorn", 1.5, 0),
    ("file", "asgi", "uvicorn", 1.0, 0),
)


def verdicts(results: Results) -> str:
    lines = ["| target | measured | |", "|---|---|---|"]
    for scenario, server, against, least, most in TARGETS:
        if scenario not in results.samples:
            continue
        pair = (against, server) if least else (server, against)
        ratios = results.ratios(scenario, *pair)
        if not ratios:
            continue
        good = median(ratios) >= least if least else median(ratios) <= most
        bound = f"≥ {least:g} × cheaper than" if least else f"≤ {most:g} × the CPU of"
        lines.append(
            f"| {scenario}: {LABELS[server]} {bound} {LABELS[against]} | {_ratio(ratios)} "
            f"| {'met' if good else '**missed**'} |"
        )
    return "\n".join([*lines, ""])
