"""Turn a release's interpreter into a worker.

Run as a file by that interpreter: ``python -P …/bootstrap.py CHANNEL_FD VERSION ROOTS``, where VERSION is
the supervisor's Python ("3.11") and ROOTS the folders (joined by ``os.pathsep``) that hold its quiesce and
what that needs.  The interpreter may be any: so this file keeps to syntax that Python 3.4 reads, or the
sentence that says what is wrong could not be said.

Nothing happens here unless this file is ``__main__``: in children that the application makes with
``multiprocessing`` (spawn, forkserver) it is imported once more, as ``__mp_main__``.
"""

import sys

if __name__ == "__main__":
    # First of all: what a plain start of this interpreter has (site, .pth files and agents included).  What
    # we import from here on must not be in the application's way; see isolation.py.
    BASELINE = frozenset(sys.modules)

import os

CONFIG = 78  # shared/exitcodes.py, which cannot be imported yet
PIP = " -m pip install "


def refuse(channel: int, reason: str) -> int:
    """Say why this interpreter cannot be a worker, to people and to the supervisor; return the exit status."""
    import json

    sys.stderr.write("quiesce: " + reason + "\n")
    packet = {"v": 1, "type": "failed", "seq": 1, "reason": reason}
    try:
        os.write(channel, json.dumps(packet).encode())  # SEQPACKET: one write is one packet
    except OSError:
        pass  # nobody is there any more; the line above is on stderr
    return CONFIG


def own_path() -> "list[str]":
    """``sys.path`` as our imports may see it: nothing that the release could have put before the library.

    That is this file's own folder (had -P been forgotten), what PYTHONPATH names, and the application's
    folder, wherever it comes from.
    """
    here = os.path.realpath(os.path.dirname(os.path.abspath(__file__)))
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    hidden = {os.path.realpath(folder) for folder in given if folder}
    hidden.update((here, os.path.realpath(os.curdir)))
    return [entry for entry in sys.path if os.path.realpath(entry) not in hidden]


def application_path() -> "list[str]":
    """``sys.path`` as the application shall see it, without its own folder, which comes first later."""
    here = os.path.realpath(os.path.dirname(os.path.abspath(__file__)))
    return [entry for entry in sys.path if os.path.realpath(entry) != here]


def is_installed() -> bool:
    """Would ``import quiesce`` give this project?  A release may have a package of that name, which is its own.

    Nothing is imported by asking.
    """
    from importlib.machinery import PathFinder

    finders = [PathFinder] + [f for f in sys.meta_path if f is not PathFinder]
    for finder in finders:  # editable installs have finders of their own
        find = getattr(finder, "find_spec", None)
        spec = find("quiesce", None) if find is not None else None
        if spec is not None:
            folders = spec.submodule_search_locations or ()
            return any(os.path.isdir(os.path.join(folder, "worker")) for folder in folders)
    return False


def main(argv: "list[str]") -> int:
    """Find a quiesce to run, run it, and return the exit status."""
    channel, supervisor_python, roots = int(argv[1]), argv[2], argv[3].split(os.pathsep)
    os.set_inheritable(channel, False)
    python = ".".join(str(part) for part in sys.version_info[:2])
    if sys.version_info < (3, 11):  # noqa: UP036
        return refuse(
            channel,
            sys.executable + " is Python " + python + "; quiesce needs Python 3.11 or newer in a release",
        )
    theirs, ours = application_path(), own_path()
    sys.path[:] = ours
    if not is_installed():
        # PYTHONPATH is not ours to trust, but it may be how somebody installed us.
        here = os.path.realpath(os.curdir)
        sys.path[:] = [entry for entry in theirs if os.path.realpath(entry) != here]
        if is_installed():
            ours = list(sys.path)
        elif python == supervisor_python:
            ours = ours + [root for root in roots if root not in ours]
            theirs = theirs + [root for root in roots if root not in theirs]
            sys.path[:] = ours
        else:
            return refuse(
                channel,
                sys.executable
                + " (Python "
                + python
                + ") has no quiesce, and cannot borrow that of the supervisor's Python "
                + supervisor_python
                + ": run "
                + sys.executable
                + PIP
                + "quiesce",
            )
    try:
        from quiesce.worker.main import main as run
    except Exception as exc:
        return broken(channel, exc)
    sys.argv[:] = argv[:1]  # our arguments are none of the application's
    return run(channel, BASELINE, ours, theirs)


def broken(channel: int, exc: Exception) -> int:
    """There is a quiesce, and it cannot be imported: say which, and how to mend it."""
    import traceback

    traceback.print_exc()
    where = getattr(sys.modules.get("quiesce"), "__file__", None) or "quiesce"
    what = type(exc).__name__ + ": " + str(exc)
    name = getattr(exc, "name", None) or ""
    if isinstance(exc, ImportError) and (name == "quiesce" or name.startswith("quiesce.")):
        state = "is too old or incomplete for this supervisor"
    else:
        state = "cannot be imported"
    return refuse(
        channel,
        os.path.dirname(where) + " " + state + " (" + what + "): run " + sys.executable + PIP
        + "--upgrade --force-reinstall quiesce",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv))
