"""The first rollout of an instance: the configured release, gated; else the newest good one still on disk."""

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.releases import Release, cold_start_order, good_ones
from quiesce.supervisor.recipes import recipe
from quiesce.supervisor.release_dir import exists, resolve
from quiesce.supervisor.service import Service
from quiesce.supervisor.watching import Ended, Stopping, Watch


class ColdStart:
    """A start, and what is tried when it fails (``service.candidates``)."""

    def __init__(self, service: Service, watch: Watch) -> None:
        """``watch``: who waits; told once, when a release serves or none does."""
        self._service = service
        self._outer = watch
        self.failed: Ended | None = None  # what was meant to serve, if something else does

    def begin(self) -> None:
        """Start.

        Raises:
            ConfigError: What is asked for cannot be meant and there is nothing to fall back to.
        """
        service = self._service
        outcomes = service.history.outcomes()
        good = [release for release in good_ones(outcomes) if exists(release)]
        configured: Release | None = None
        try:
            configured = resolve(service.settings, service.new_id(), None)
        except ConfigError as exc:
            if not good:
                raise
            service.notice(str(exc))
        candidates = cold_start_order(configured, good, outcomes)
        if configured is not None and configured not in candidates:
            service.notice(
                f"{configured.path} was rolled back before and is not started; "
                "`quiesce upgrade` tries it again once it is mended"
            )
        elif configured is not None:
            service.ids.append(configured.id)
        service.candidates = candidates
        self._next()

    def go_on(self) -> None:
        """One that another supervisor has begun, if nothing of it is under way."""
        service = self._service
        if service.run is not None or service.stopping is not Stopping.NO:
            return
        if service.serving is not None:
            if all(run.reported for run in service.runs):  # else it tells by itself
                self._outer.decided(Ended(0, f"{service.serving.release.id} serves"))
        elif service.candidates:
            self._next()
        else:
            self.begin()

    def _next(self) -> None:
        service = self._service
        release, service.candidates = service.candidates[0], service.candidates[1:]
        service.roll_out("start", release, recipe(service.settings, release), {"bake": 0.0}, self.watch())

    def watch(self) -> Watch:
        """Of one candidate: if it fails the next one follows, and only the last is told to whoever waits."""
        service = self._service

        def decided(ended: Ended) -> None:
            if ended.code == 0 or not service.candidates or service.stopping is not Stopping.NO:
                self._outer.decided(ended)
                return
            self.failed = self.failed or ended
            rest = service.candidates[0]
            service.notice(f"{ended.text}; serving the last good release {rest.id} ({rest.path}) instead")
            if ended.detail:
                service.log.multiline("error", "start failed", ended.detail)
            self._next()

        return Watch(self._outer.progress, decided, self._outer.finished)
