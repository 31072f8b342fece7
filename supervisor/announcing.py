"""What others are told of how the instance stands: who started it, the manager above us, `ps`."""

from collections.abc import Callable
from typing import Any

from quiesce.shared.exitcodes import Exit
from quiesce.supervisor import fdnames, status
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.notify import Notifier
from quiesce.supervisor.service import Service
from quiesce.supervisor.starting import Mode, Once, StartReport
from quiesce.supervisor.watching import Ended, Stopping

EXTEND_S = 15.0  # said every second: TimeoutStartSec= and TimeoutStopSec= only end what has died


class Announcing:
    """Says nothing twice.

    Attributes:
        accepts: READY was said.
    """

    def __init__(
        self,
        service: Service,
        notifier: Notifier,
        store: FdStore,
        told: Once,
        mode: Mode,
        runtime_dir: str,
        save: Callable[[], None],
    ) -> None:
        """Args as the parts they are; further:

        told: Who started us.
        save: Writes down that it accepts.
        """
        self.accepts = False
        self._service = service
        self._notifier = notifier
        self._store = store
        self._told = told
        self._mode = mode
        self._runtime_dir = runtime_dir
        self._save = save
        self._title: Callable[[str], None] | None = None
        self._line = ""

    # -- the start --------------------------------------------------------------------------

    def progress(self, text: str) -> None:
        """A sentence while it starts."""
        self._notifier.status(text)

    def started(self, ended: Ended, failed: Ended | None) -> None:
        """It serves.

        Args:
            ended: How the start ended.
            failed: What was meant to serve, if something else does: to a script that deploys by `start`,
                that is a failure.
        """
        # Told first: who takes over in between tells it again, which is better than never.
        if failed is None or self._mode is not Mode.BACKGROUND:
            self.tell_start(StartReport(int(Exit.OK), ended.text, data=self._banner()))
        else:
            text = f"{failed.text}; instead {ended.text}"
            self.tell_start(StartReport(int(Exit.FAILED), text, failed.detail, self._banner()))
        self.begin_to_accept()

    def tell_start(self, report: StartReport) -> None:
        self._told(report)
        self._store.drop(fdnames.REPORT)

    def was_told(self) -> None:
        """The last supervisor did."""
        self._told.spare()

    def begin_to_accept(self) -> None:
        self.accepts = True
        self._save()
        from setproctitle import setproctitle  # after ready: a title is not worth a late start

        self._title = setproctitle
        self._notifier.ready(status.one_line(self._service))
        self.changed()

    def _banner(self) -> dict[str, Any]:
        service = self._service
        assert service.serving is not None
        release, terms = service.serving.release, service.serving.recipe.terms
        worker = next(iter(service.serving), None)
        return {
            "urls": service.listeners.urls(),
            "name": service.settings.service.name,
            "release": release.id,
            "path": release.path,
            "python": release.python,
            "workers": service.upkeep.wanted,
            "threads": worker.threads if worker is not None else terms.configure.threads,
            "interface": worker.interface if worker is not None else release.interface,
            "health": terms.rule.text,
            "config_file": service.loaded.file,
            "runtime_dir": self._runtime_dir,
            "log": service.log_file,
            "notices": list(service.notices),
        }

    # -- while it runs ----------------------------------------------------------------------

    def on_rollout(self) -> None:
        """A change of release begins or is decided: `systemctl reload` waits for the second."""
        if not self.accepts or self._service.stopping is not Stopping.NO:
            return
        run = self._service.run
        if run is not None:
            # After a RELOADING=1 whose sender dies, systemd 257 starts no other before its watchdog has gone
            # off; so it is not said to a reload job that waits for its own command anyway.
            if not run.plan.by_manager:
                self._notifier.reloading(status.one_line(self._service))
            self._extend()
        else:
            self._notifier.ready(status.one_line(self._service))

    def _extend(self) -> None:
        """Whatever takes longer than TimeoutStartSec= goes on, as long as this loop turns."""
        if self._service.run is not None or self._service.stopping is not Stopping.NO:
            self._notifier.extend_timeout(EXTEND_S)

    def changed(self) -> None:
        """Show the truth: STATUS= and the process title, when it has changed."""
        self._extend()
        if not self.accepts:
            return
        line = status.one_line(self._service)
        if line == self._line:
            return
        self._line = line
        self._notifier.status(line)
        serving = self._service.serving
        if self._title is not None and serving is not None:
            count = f"{serving.accepting()}/{self._service.upkeep.wanted}"
            name = self._service.settings.service.name
            self._title(f"quiesce: supervisor {name} {serving.release.id} {count}")
