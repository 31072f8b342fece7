"""Status, history and the start banner as text for people.  Pure.

Everything fits into ``width`` columns where it can; what is cut is a path, from its front,
because its end tells releases apart.  Text that came from elsewhere (labels, errors,
paths) never reaches the terminal with control characters in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]
WIDTH = 80
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: object, keep_lines: bool = False) -> str:
    """Make control characters visible: an application's last words must not drive the terminal."""
    shown = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))
    shown = shown.encode("utf-8", "backslashreplace").decode()  # lone surrogates of odd file names
    return shown.expandtabs(8) if keep_lines else shown.replace("\n", " ").replace("\t", " ")


def shorten(text: str, width: int) -> str:
    """Cut the end."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def shorten_path(path: str, width: int) -> str:
    """Cut the front: `…/releases/20261123`."""
    return path if len(path) <= width else "…" + path[len(path) - max(0, width - 1) :]


def table(rows: Sequence[Sequence[str]], right: str = "", indent: str = "  ") -> list[str]:
    """Columns two spaces apart; the first row is the head.  ``right`` has an "r" for each numeric one."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right[column : column + 1] == "r" else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def age(seconds: float) -> str:
    """Two units at most: `45s`, `3m 20s`, `5h 12m`, `12d 3h`."""
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds}s"
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // small
            return f"{seconds // size}{unit}" + (f" {rest}{small_unit}" if rest else "")
    raise AssertionError("unreachable")


def duration(seconds: object) -> str:
    """How long something took: `0.41s`, `12.3s`, `3m 20s`."""
    if not isinstance(seconds, (int, float)):
        return "-"
    return f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.1f}s" if seconds < 60 else age(seconds)


def number(value: object) -> str:
    """`1,234,567`."""
    return f"{value:,}" if isinstance(value, int) else "-"


def short_number(value: object) -> str:
    """`9,999`, `12k`, `3.4M`: never more than five columns."""
    if not isinstance(value, int) or abs(value) < 10_000:
        return number(value)
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= size:
            count = value / size
            return f"{count:.1f}{unit}" if count < 10 else f"{count:.0f}{unit}"
    raise AssertionError("unreachable")


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# Status


def status(doc: Doc, now: float, width: int = WIDTH) -> str:
    """The document of ``status`` (design: 7. Commands) for a person.

    Args:
        now: Unix seconds; ages are relative to it.
    """
    lines = [*wrap(_headline(doc), width), *_facts(doc, now, width)]
    for notice in doc.get("notices", ()):
        lines += wrap(f"! {clean(notice)}", width)
    releases, workers = doc.get("releases", ()), doc.get("workers", ())
    if releases:
        lines += ["", *_releases(releases, doc.get("release"), width)]
    if workers:
        lines += ["", *_workers(workers, now, width)]
    return "\n".join(lines) + "\n"


def _headline(doc: Doc) -> str:
    """`shop: r42 serves, 4 of 4 workers accept`."""
    name, release = clean(doc.get("name", "?")), doc.get("release")
    workers = [worker for worker in doc.get("workers", ()) if worker.get("release") == release]
    accepting = sum(worker.get("state") == "accepting" for worker in doc.get("workers", ()))
    wanted = doc.get("wanted_workers", len(workers))
    if release is None:
        return f"{name}: NOTHING SERVES"
    health = "healthy" if accepting >= wanted else "DEGRADED" if accepting else "NOT ACCEPTING"
    if doc.get("unready"):
        health += ", drained" if _is_drained(doc) else ", draining"
        health += " for a load balancer"
    return f"{name}: {clean(release)} serves, {health} ({accepting} of {plural(wanted, 'worker')} accept)"


def _is_drained(doc: Doc) -> bool:
    """Has a `quiesce drain` come to its end: does nobody accept, and is no request under way?"""
    workers = doc.get("workers", ())
    busy = sum(worker.get("connections", {}).get("busy", 0) for worker in workers)
    return bool(doc.get("held")) and not busy and all(w.get("state") != "accepting" for w in workers)


def _facts(doc: Doc, now: float, width: int) -> list[str]:
    supervisor = doc.get("supervisor", {})
    rows = [
        (
            "listening",
            ", ".join(clean(item.get("address", "?")) for item in doc.get("listeners", ())) or "nowhere",
        )
    ]
    rows.append(("rollout", _rollout(doc.get("rollout", {}), now)))
    if doc.get("unready"):
        rows.append(("readiness", "ready_path answers 503, so that a load balancer sends nobody here"))
    since = supervisor.get("since")
    up = f", up {age(now - since)}" if isinstance(since, (int, float)) else ""
    born = doc.get("since")
    if isinstance(born, (int, float)) and isinstance(since, (int, float)) and since - born > 1:
        up += f", instance up {age(now - born)}"
    keeper = f" under keeper {doc['keeper']}" if isinstance(doc.get("keeper"), int) else ""
    rows.append(
        (
            "supervisor",
            f"pid {supervisor.get('pid', '?')}{keeper}, quiesce {clean(supervisor.get('version', '?'))}{up}",
        )
    )
    if not doc.get("crash_safe"):  # what is as it should be takes no line
        rows.append(("crash safe", f"no: {clean(doc.get('crash_safe_reason') or 'unknown')}"))
    if doc.get("log"):
        rows.append(("log", clean(doc["log"])))
    moving = [
        f"{number(item['lane'])} to {clean(item.get('id', '?'))}"
        for item in doc.get("releases", ())
        if item.get("lane")
    ]
    if moving:
        rows.append(("moving", ", ".join(moving)))
    requests = doc.get("counters", {}).get("requests_total")
    if requests is not None:
        rows.append(("requests", number(requests)))
    lines = []
    for label, text in rows:
        first, *more = wrap(text, max(20, width - 14))
        lines += [f"  {label:<10}  {first}", *(f"{'':14}{line}" for line in more)]
    return lines


def _rollout(rollout: Doc, now: float) -> str:
    state = rollout.get("state", "idle")
    if state == "idle":
        return "idle"
    since = rollout.get("since")
    parts = [clean(state).replace("_", " ")]
    if rollout.get("release"):
        parts.append(clean(rollout["release"]))
    if rollout.get("from"):
        parts.append(f"(from {clean(rollout['from'])})")
    if isinstance(since, (int, float)):
        parts.append(f"for {age(now - since)}")
    text = clean(rollout.get("text") or "")
    return " ".join(parts) + (f": {text}" if text else "")


def _releases(releases: Sequence[Doc], serving: object, width: int) -> list[str]:
    rows = [["RELEASE", "STATE", "LABEL", "APP", "DIRECTORY"]]
    for item in releases:
        mark = "*" if item.get("id") == serving else ""
        rows.append(
            [
                *(clean(item.get("id", "?")) + mark, clean(item.get("state", "?"))),
                *(shorten(clean(item.get("label") or "-"), 16), shorten(clean(item.get("app") or "-"), 24)),
                clean(item.get("path", "?")),
            ]
        )
    used = sum(max(len(row[column]) for row in rows) + 2 for column in range(4)) + 2
    return table([[*row[:4], shorten_path(row[4], max(16, width - used))] for row in rows])


def _workers(workers: Sequence[Doc], now: float, width: int) -> list[str]:
    rows = _worker_rows(workers, now, number)
    if max(map(len, rows)) > width:
        rows = _worker_rows(workers, now, short_number)
    return rows


def _worker_rows(workers: Sequence[Doc], now: float, figure: Callable[[object], str]) -> list[str]:
    """What no worker has takes no column."""
    counts = [_worker_counts(item) for item in workers]
    optional = [name for name in ("TLS", "UPGR", "OUT", "IN") if any(count.get(name) for count in counts)]
    restarts = ["RESTARTS"] if any(count.get("RESTARTS") for count in counts) else []
    names = ["OPEN", "IDLE", "BUSY", *optional, "REQUESTS", *restarts]
    rows = [["WORKER", "PID", "STATE", *names, "AGE"]]
    for item, count in zip(workers, counts, strict=True):
        since = item.get("since")
        rows.append(
            [
                *(clean(item.get("id", "?")), str(item.get("pid", "-")), clean(item.get("state", "?"))),
                *(figure(count.get(name)) for name in names),
                age(now - since) if isinstance(since, (int, float)) else "-",
            ]
        )
    return table(rows, right="lrl" + "r" * (len(names) + 1))


def _worker_counts(item: Doc) -> dict[str, Any]:
    connections = item.get("connections", {})
    return {
        **{name.upper(): connections.get(name) for name in ("open", "idle", "busy", "tls")},
        "UPGR": connections.get("upgraded"),
        "OUT": item.get("handed_out"),
        "IN": item.get("taken_in"),
        "REQUESTS": item.get("requests"),
        "RESTARTS": item.get("restarts"),
    }


def wrap(text: str, width: int) -> list[str]:
    """Break at spaces; a word that is longer than a line stays whole, so that it can be copied."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines or [""]


# History


def history(entries: Sequence[Doc], width: int = WIDTH) -> str:
    """One rollout a line, the newest last; the reason of a failure on a line of its own."""
    if not entries:
        return "no rollouts yet\n"
    rows = [["WHEN", "RELEASE", "LABEL", "WHAT", "OUTCOME", "TOOK"]]
    reasons = [""]
    for entry in entries:
        at = entry.get("at")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, (int, float)) else "?"
        release = clean(entry.get("release") or "-")
        if entry.get("from"):
            release = f"{clean(entry['from'])} → {release}"
        rows.append(
            [
                *(
                    when,
                    release,
                    shorten(clean(entry.get("label") or "-"), 16),
                    clean(entry.get("command") or "?"),
                ),
                *(clean(entry.get("outcome") or "?").replace("_", " "), duration(entry.get("duration_s"))),
            ]
        )
        reasons.append(clean(entry.get("reason") or ""))
    lines: list[str] = []
    for line, reason in zip(table(rows, right="lllllr", indent=""), reasons, strict=True):
        lines.append(shorten(line, width))
        if reason:
            lines += [f"    {part}" for part in wrap(reason, width - 4)]
    return "\n".join(lines) + "\n"


# Start


def banner(data: Doc, command: str = "run", address: str = "") -> str:
    """What `run` and `start` print when the instance accepts.

    Args:
        address: The options with which a command finds it, as in " --name shop".
    """
    name = clean(data.get("name", "default"))
    urls = [clean(url) for url in data.get("urls", ())]
    workers, threads = data.get("workers", 1), data.get("threads", 1)
    size = plural(workers, "worker") + (f" × {plural(threads, 'thread')}" if isinstance(threads, int) else "")
    interface = clean(data.get("interface") or "")
    rows = [
        ("instance", name),
        ("release", f"{clean(data.get('release', '?'))}  {clean(data.get('path', '?'))}"),
        ("python", clean(data.get("python", "?"))),
        ("workers", size + (f", {interface}" if interface else "")),
        ("health", clean(data.get("health", "?"))),
        ("config", clean(data.get("config_file") or "none")),
    ]
    if data.get("log"):
        rows.append(("log", clean(data["log"])))
    lines = [f"quiesce serves {' '.join(urls) or 'nowhere'}"]
    lines += [f"  {label:<9} {text}" for label, text in rows]
    lines += [f"! {clean(notice)}" for notice in data.get("notices", ())]
    here = " (or Ctrl-C here)" if command == "run" else ""
    lines += ["next:"]
    for word, does in (
        ("upgrade", "roll out what is in the release directory now"),
        ("status", "what runs"),
        ("stop", "finish what was accepted and exit" + here),
    ):
        lines.append(f"  quiesce{address} {word:<7}   {does}")
    return "\n".join(lines) + "\n"


# Reconfiguration


def _with(items: object, hint: str) -> list[str]:
    """The items, the last one with a hint behind it."""
    if not isinstance(items, list) or not items:
        return []
    return [*(str(item) for item in items[:-1]), f"{items[-1]} {hint}"]


def reconfigured(data: Doc, width: int = WIDTH) -> str:
    """The answer to ``reconfigure`` (``core.reconfigure.document``): what is new, and from when on."""
    listeners = data.get("listeners", {})
    rows = [
        ("listens on", listeners.get("added")),
        ("no longer on", listeners.get("removed")),
        ("changed", listeners.get("changed")),
        ("live now", data.get("live")),
        ("at upgrade", _with(data.get("rollout"), "(with the next `quiesce upgrade`)")),
        ("at restart", _with(data.get("restart"), "(`quiesce stop`, then start it again)")),
    ]
    lines = []
    for label, items in rows:
        if items:
            first, *more = wrap(", ".join(clean(item) for item in items), max(20, width - 16))
            lines += [f"  {label:<12}  {first}", *(f"{'':16}{line}" for line in more)]
    head = "reconfigured" if lines else "nothing has changed"
    for problem in data.get("problems", ()):
        lines += wrap(f"! {clean(problem)}", width)
    return "\n".join([head, *lines]) + "\n"


# Errors and results


def failure(command: str, code: int, text: str, detail: str = "") -> str:
    """`quiesce: upgrade failed: …`, then the detail as it is, so that it can be copied."""
    refused = code in (2, 5)  # nothing was changed
    head = f"quiesce: {command} {'refused' if refused else 'failed'}: " if command else "quiesce: "
    return head + clean(text) + "\n" + block(detail)


def block(detail: str) -> str:
    """Lines that came from an application, made safe for a terminal."""
    detail = detail.rstrip("\n")
    if not detail:
        return ""
    return "".join(f"{clean(line, keep_lines=True)}\n" for line in detail.split("\n"))


# Configuration


def settings(rows: Sequence[tuple[str, str, str]]) -> str:
    """`check --show-config`: key, value and origin, aligned."""
    return "\n".join(table([("KEY", "VALUE", "ORIGIN"), *rows], indent="")) + "\n"
