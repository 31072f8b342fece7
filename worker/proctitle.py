"""What ``ps`` shows of a worker."""

from collections.abc import Callable

from quiesce.worker.isolation import own_imports


class ProcTitle:
    """``quiesce: worker shop r42/1``, and ``… draining 17`` while it is not accepting.

    setproctitle is imported by the first :meth:`show`, which is why that belongs after ready.
    """

    def __init__(self, instance: str, worker: str) -> None:
        self._base = f"quiesce: worker {instance} {worker}"
        self._shown = ""
        self._set: Callable[[str], None] | None = None

    def show(self, state: str, connections: int) -> None:
        """Change the title if it is another one than before."""
        title = self._base if state == "accepting" else f"{self._base} {state}"
        if connections and state not in ("accepting", "ready"):
            title += f" {connections}"
        if title == self._shown:
            return
        self._shown = title
        if self._set is None:
            self._set = _setproctitle()
        self._set(title)


def _setproctitle() -> Callable[[str], None]:
    try:
        with own_imports():
            from setproctitle import setproctitle
    except ImportError:
        return lambda _title: None  # only people miss it
    return setproctitle
