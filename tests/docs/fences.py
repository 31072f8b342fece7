"""The fenced blocks of a Markdown file, and what their text means.  Pure.

============================  =============================================================================
fence                         meaning
============================  =============================================================================
```` ```console ````          lines that begin with ``$ `` are commands (continued by a trailing backslash),
                              what follows each is its whole output
```` ```console server ````   the same in a terminal called "server": its last command may go on running, and
                              is followed by the output with which it begins
any other, first line         a file: the test writes it there, relative to the empty directory, unless the
``# path/of.file``            path is absolute
============================  =============================================================================

In expected output ``…`` stands for anything within a line, and a line of nothing but ``…`` for any lines or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^(?P<mark>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=mark)[ ]*$", re.M | re.S)
_FILE_NAME = re.compile(r"^# (?P<path>[\w./@-]+\.\w+)(?:\s|$)")


@dataclass(frozen=True)
class Command:
    """One command of a console block.

    Attributes:
        line: Number of its line in the document, from 1.
        text: What is typed.
        expected: What it prints, with wildcards; ends with a newline unless empty.
    """

    line: int
    text: str
    expected: str


@dataclass(frozen=True)
class Fence:
    """One fenced block: ``language`` and ``words`` of its info string, its ``body``, the number of its first line."""

    line: int
    language: str
    words: tuple[str, ...]
    body: str

    @property
    def path(self) -> str | None:
        """The file that this block shows, if its first line names one."""
        found = _FILE_NAME.match(self.body)
        return found["path"] if found and self.language != "console" else None

    @property
    def terminal(self) -> str:
        """Which terminal a console block is typed in."""
        return self.words[0] if self.words else "main"

    def commands(self) -> Iterator[Command]:
        """The commands of a console block."""
        lines = self.body.splitlines(keepends=True)
        starts = [
            index
            for index, line in enumerate(lines)
            if line.startswith("$ ") and not (index and lines[index - 1].endswith("\\\n"))
        ]
        if lines and (not starts or starts[0] != 0):
            raise ValueError(f"line {self.line}: a console block begins with a command")
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            last = start
            while lines[last].endswith("\\\n"):
                last += 1
            text = "".join(lines[start : last + 1])[2:].rstrip("\n")
            yield Command(self.line + start, text, "".join(lines[last + 1 : end]))


def fences(document: str) -> list[Fence]:
    """Every fenced block, in order."""
    found = []
    for match in _FENCE.finditer(document):
        language, *words = match["info"].split() or [""]
        line = document.count("\n", 0, match.start("body")) + 1
        found.append(Fence(line, language, tuple(words), match["body"]))
    return found


def pattern(expected: str) -> re.Pattern[str]:
    """A regular expression that matches what ``expected`` stands for."""
    parts = []
    for line in expected.splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(map(re.escape, line.rstrip().split("…"))) + r"[ ]*\n")
    return re.compile("".join(parts))
