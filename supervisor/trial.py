"""Judge a configuration and its application without serving anybody: `quiesce check`."""

import os
from tempfile import TemporaryDirectory

from quiesce.shared.errors import ConfigError, ControlError, QuiesceError
from quiesce.shared.exitcodes import Exit
from quiesce.shared.logs import Log
from quiesce.supervisor.cold_start import ColdStart
from quiesce.supervisor.config import Loaded
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.history import History
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import Notifier
from quiesce.supervisor.service import Service
from quiesce.supervisor.starting import StartReport
from quiesce.supervisor.watching import SILENT, Ended


def check(loaded: Loaded) -> StartReport:
    """Is this configuration and application good?  Starts one worker that serves nobody.

    Binds nothing, writes no history and needs no runtime directory, so it may run beside
    the instance that it is about.
    """
    try:
        with TemporaryDirectory(prefix="quiesce-check-") as folder:
            return _check_in(loaded, folder)
    except ConfigError as exc:
        return StartReport(int(Exit.USAGE), str(exc))
    except (QuiesceError, ControlError) as exc:
        return StartReport(int(Exit.FAILED), str(exc))


def _check_in(loaded: Loaded, folder: str) -> StartReport:
    loop = Loop()
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    log = Log(null, "error")
    store = FdStore(loop, Notifier(None, loop), log, None)
    service = Service(loop, log, loaded, Listeners(), History(folder, 1), null, store)
    service.upkeep.wanted = 1
    reports: list[StartReport] = []

    def decided(ended: Ended) -> None:
        if ended.code == Exit.OK and service.serving is not None:
            release = service.serving.release
            worker = next(iter(service.serving))
            rule = service.serving.recipe.terms.rule.text
            text = f"{release.path}: {release.app} is good ({worker.interface}; {rule})"
            data = {
                "path": release.path,
                "python": release.python,
                "interface": worker.interface,
                "app": release.app,
            }
            reports.append(StartReport(int(Exit.OK), text, data=data))
        else:
            reason = ended.text.partition(": ")[2] or ended.text
            reports.append(StartReport(int(Exit.FAILED), reason, ended.detail))
        service.stop(now=True)

    service.on_gone = loop.stop
    try:
        ColdStart(service, SILENT._replace(decided=decided)).begin()
        loop.run()
    finally:
        service.crew.close()
        loop.close()
        os.close(null)
    return reports[0]
