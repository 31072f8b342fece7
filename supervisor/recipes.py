"""How the workers of a release are made: from the configuration as it is now."""

import os

from quiesce.shared import messages as msg
from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config import Settings
from quiesce.supervisor.core import environment
from quiesce.supervisor.core.releases import Release
from quiesce.supervisor.crew import Recipe
from quiesce.supervisor.health import health_rule
from quiesce.supervisor.identity import worker_identity
from quiesce.supervisor.release_dir import read_env_files
from quiesce.supervisor.worker_parts import Terms


def recipe(settings: Settings, release: Release) -> Recipe:
    """How workers of this release are made, with what the configuration says now."""
    service, rollout, worker = settings.service, settings.rollout, settings.worker
    if service.control_group and not service.user and os.geteuid() == 0:
        raise ConfigError(
            f"members of control_group {service.control_group} choose what is run, and it would be run as root; "
            "set `user`, or leave out `control_group`"
        )
    identity = worker_identity(service.user, service.group)
    account = {}
    if identity is not None:
        account = {"HOME": identity.home, "USER": identity.name, "LOGNAME": identity.name}
    about = {"QUIESCE_NAME": service.name, "QUIESCE_RELEASE": release.id, "QUIESCE_LABEL": release.label}
    env = environment.build(os.environ, read_env_files(service.env_files), service.env, about, account)
    limits = {key: float(getattr(settings.limits, key)) for key in settings.limits.__struct_fields__}
    configure = msg.Configure(
        name=service.name,
        release=release.id,
        label=release.label,
        worker="",
        app=release.app,
        interface=release.interface,
        app_dir=release.app_dir,
        threads=service.threads,
        start_timeout_s=rollout.start_timeout,
        exit_timeout_s=worker.exit_timeout,
        request_timeout_s=worker.request_timeout,
        limits=limits,
        log_level=settings.log.level,
        drain_timeout_s=rollout.drain_timeout,
        ready_path=rollout.ready_path,
    )
    rule = health_rule(
        rollout.health_path,
        rollout.health_host,
        rollout.health_headers,
        rollout.health_passes,
        rollout.warmup,
    )
    return Recipe(Terms(configure, rule, rollout.drain_timeout), env, service.umask, identity, settings)
