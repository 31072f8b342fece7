"""As whom workers run: `user` and `group` of the configuration, looked up."""

import grp
import os
import pwd

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.spawn import Identity


def group_id(name: str) -> int:
    """The gid of a group's name or number.

    Raises:
        ConfigError: There is no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdigit():
            return int(name)
        raise ConfigError(f"there is no group {name!r}; make it with `groupadd --system {name}`") from None


def user_id(name: str) -> int:
    """The uid of a user's name or number.

    Raises:
        ConfigError: There is no such user.
    """
    return _account(name).pw_uid


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"there is no user {name!r}; make it with `useradd --system {name}`") from None


def worker_identity(user: str, group: str) -> Identity | None:
    """The identity for `user` and `group`; None if workers run as the supervisor does.

    Raises:
        ConfigError: Unknown names, or a supervisor that may not change to them.
    """
    if not user and not group:
        return None
    account = _account(user or str(os.geteuid()))
    gid = group_id(group) if group else account.pw_gid
    if (account.pw_uid, gid) == (os.geteuid(), os.getegid()):
        return None
    if os.geteuid() != 0:
        raise ConfigError(
            f"only root can run workers as user {account.pw_name!r}; start quiesce as root, or drop `user`"
        )
    groups = tuple(sorted({gid, *os.getgrouplist(account.pw_name, gid)}))
    return Identity(account.pw_uid, gid, groups, account.pw_name, account.pw_dir)
