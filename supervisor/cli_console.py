"""Where a command's words go: progress and errors to stderr, results to stdout, or one JSON document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from quiesce.supervisor import render

_CLEAR_TO_END = "\x1b[K"


class Console:
    """The terminal, pipe or file that a command writes to."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._live = _is_terminal(sys.stderr)
        self._line_open = False
        self._last = ""

    def progress(self, text: str) -> None:
        """One line that is overwritten on a terminal; plain lines elsewhere."""
        text = render.clean(text)
        if text == self._last:
            return
        self._last = text
        if self._live:
            self._line_open = True
            _write(sys.stderr, "\r" + render.shorten(text, _width(sys.stderr) - 1) + _CLEAR_TO_END)
        else:
            _write(sys.stderr, text + "\n")

    def result(
        self, command: str, code: int, text: str, detail: str = "", data: Mapping[str, Any] | None = None
    ) -> int:
        """Print how it ended; returns ``code``."""
        if self.as_json:
            self.document({**(data or {}), "code": code, "text": text, "detail": detail})
        elif code == 0:
            self.out((render.clean(text) + "\n" if text else "") + render.block(detail))
        else:
            self.error(render.failure(command, code, text, detail))
        return code

    def document(self, document: Mapping[str, Any]) -> None:
        """The one JSON document of ``--json``."""
        self.out(json.dumps(document, indent=2, default=str) + "\n")

    def out(self, text: str) -> None:
        self._end_line()
        _write(sys.stdout, text)

    def error(self, text: str) -> None:
        self._end_line()
        _write(sys.stderr, text)

    def redraw(self, text: str) -> bool:
        """Replace the screen (``status --watch``); where there is none, append.  False: nobody reads any more."""
        if _is_terminal(sys.stdout):
            # Home, then line by line, then clear what is left: no flicker.
            text = "\x1b[H" + text.replace("\n", _CLEAR_TO_END + "\n") + "\x1b[J"
        self._end_line()
        return _write(sys.stdout, text)

    def width(self) -> int:
        return _width(sys.stdout) if _is_terminal(sys.stdout) else render.WIDTH

    def _end_line(self) -> None:
        if self._line_open:
            self._line_open = False
            _write(sys.stderr, "\r" + _CLEAR_TO_END)


def _write(stream: Any, text: str) -> bool:
    """Write and flush; a reader that has gone is no reason to fail, and none to stop.  False: it has gone."""
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        stream.flush()
    except BrokenPipeError:
        # `quiesce history | head`: what follows goes nowhere, and the interpreter's own
        # flush at exit must not complain about it.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return False
    except OSError:
        return False  # a full disk, a terminal that went away
    return True


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb")
    except ValueError:  # closed
        return False


def _width(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or render.WIDTH
    except (OSError, ValueError):
        return render.WIDTH
