"""What a release is on disk: its directory, its interpreter, its environment files."""

import os
import sys
from pathlib import Path

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config import Settings
from quiesce.supervisor.core.environment import parse_env_file
from quiesce.supervisor.core.releases import Release


def resolve(settings: Settings, release_id: str, label: str | None) -> Release:
    """Look at the disk now and return the release that the configuration means.

    Raises:
        ConfigError: The directory or the interpreter is not there.
    """
    service = settings.service
    path = os.path.realpath(service.release)
    _need_directory(path, service.release)
    app_dir = os.path.realpath(os.path.join(path, service.app_dir))
    _need_directory(app_dir, service.app_dir)
    return Release(
        id=release_id,
        label=label or os.path.basename(path) or path,
        path=path,
        python=_interpreter(path, service.python),
        app=service.app,
        app_dir=app_dir,
        interface=service.interface,
    )


def _need_directory(path: str, asked: str) -> None:
    if not os.path.isdir(path):
        arrow = f" (which is {path})" if os.path.abspath(asked) != path else ""
        what = "is not a directory" if os.path.exists(path) else "is not there"
        raise ConfigError(f"the release directory {asked}{arrow} {what}; nothing was changed")


def _interpreter(path: str, configured: str) -> str:
    """Not resolved: a virtualenv's python is a link, and the link's folder makes it the virtualenv's."""
    if configured:
        python = os.path.join(path, configured)
        if not os.access(python, os.X_OK):
            raise ConfigError(
                f"the interpreter {python} is not there; make the release's virtualenv, or set `python`"
            )
        return python
    own = os.path.join(path, ".venv/bin/python")
    if os.access(own, os.X_OK):
        return own
    try:
        os.stat(os.path.join(path, ".venv", "bin"))
    except PermissionError as exc:
        # Our own Python would serve it with other libraries than it was deployed with.
        raise ConfigError(
            f"{path}/.venv is closed to this supervisor; let its user or group enter it, or set `python`"
        ) from exc
    except OSError:
        pass  # there is none
    return sys.executable


def read_env_files(names: tuple[str, ...]) -> list[dict[str, str]]:
    """The `env_files`, read now, in order.

    Raises:
        ConfigError: One cannot be read; its content is never shown.
    """
    files = []
    for name in names:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise ConfigError(f"cannot read env_files entry {name}: {why}") from exc
        files.append(parse_env_file(text, name))
    return files


def exists(release: Release) -> bool:
    """Is it still on disk, interpreter included?"""
    return os.path.isdir(release.app_dir) and os.access(release.python, os.X_OK)
