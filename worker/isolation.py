"""Whose module is it?  Keeps ours out of the application's way, and its out of ours.

A release may hold a ``json.py``, a ``socket.py`` or a package ``quiesce``, and as in a plain ``python app.py``
those are the ones that it gets.  But by then this process has imported the library's.  So, just before the
application is imported, whatever its folder shadows *and only we have imported* leaves ``sys.modules``; our
modules hold on to what they have bound.  What we import later is imported inside :func:`own_imports`, which
puts our view of ``sys.modules`` and ``sys.path`` back for that moment.

Without such names in the release (nearly always) none of this does anything.
"""

import os
import sys
from _imp import extension_suffixes
from collections.abc import Iterable, Sequence
from types import ModuleType, TracebackType

_OURS = frozenset(("quiesce", "httptools", "setproctitle", "uvloop"))

# What the engine may import after the application.  Only loaded ahead of it when the release shadows
# something: a module of the library that is loaded later might bind one of the release's.
_LATE = ("tempfile", "threading", "traceback", "linecache", "tokenize", "difflib", "inspect", "setproctitle")


class _State:
    """The two views.  One for a process, as ``sys.modules`` is."""

    __slots__ = ("app_path", "baseline", "depth", "hidden", "own_path", "saved_path", "shadowed", "theirs")

    def __init__(self) -> None:
        self.baseline: frozenset[str] = frozenset(sys.modules)
        self.own_path: list[str] = []
        self.app_path: list[str] = []
        self.shadowed: frozenset[str] = frozenset()  # top-level names that are the application's
        self.hidden: dict[str, ModuleType] = {}  # ours under such names
        self.theirs: dict[str, ModuleType] = {}  # the application's, while we import
        self.saved_path: list[str] = []
        self.depth = 0


_state = _State()


def set_out(baseline: frozenset[str], own_path: Sequence[str], app_path: Sequence[str]) -> None:
    """Take over from the bootstrap.

    Args:
        baseline: Names in ``sys.modules`` before anything of ours was imported.
        own_path: ``sys.path`` for our imports.
        app_path: ``sys.path`` for the application, without ``app_dir``.
    """
    _state.baseline = baseline
    _state.own_path, _state.app_path = list(own_path), list(app_path)


def enter_application(app_dir: str, late: Iterable[str] = ()) -> None:
    """Make ``sys.path`` and ``sys.modules`` the application's; ``app_dir`` comes first.

    Args:
        app_dir: Absolute.
        late: Modules that we may import later, in addition to what the engine always may.  They are
            imported now if the release shadows anything of the library, else not.
    """
    folders = [app_dir, *(entry for entry in _state.app_path if entry not in _state.own_path)]
    names = _names_in(folders) - {_top(name) for name in _state.baseline}
    if names & (sys.stdlib_module_names | _OURS):
        _preload((*_LATE, *late))
    _share_namespace(os.path.join(app_dir, "quiesce"))
    _state.shadowed = frozenset(name for name in names if not _is_from(name, folders))
    _take_out(_state.hidden)
    sys.path = [app_dir, *_state.app_path]


def before_exit() -> None:
    """Give the interpreter back what it looks up by name when it ends: it joins the threads of *our* threading."""
    threading = _state.hidden.get("threading")
    if threading is not None:
        sys.modules["threading"] = threading


def _names_in(folders: Iterable[str]) -> set[str]:
    """Top-level names that these folders would give to an import statement."""
    suffixes = (".py", ".pyc", *extension_suffixes())
    names: set[str] = set()
    for folder in folders:
        try:
            entries = os.listdir(folder)
        except OSError:
            continue  # as the import system does
        for entry in entries:
            name, dot, rest = entry.partition(".")
            is_module = dot and "." + rest in suffixes
            if is_module or (not dot and _is_package(os.path.join(folder, entry), suffixes)):
                names.add(name)
    return {name for name in names if name.isidentifier()}


def _is_package(folder: str, suffixes: tuple[str, ...]) -> bool:
    # Without __init__ it is a namespace package, over which a regular one wins wherever it is on sys.path.
    return any(os.path.exists(os.path.join(folder, "__init__" + suffix)) for suffix in suffixes)


def _share_namespace(folder: str) -> None:
    """A folder ``quiesce`` without ``__init__``: its modules are found beside ours, as in one package."""
    ours = sys.modules.get("quiesce")
    if ours is not None and os.path.isdir(folder) and not _is_package(folder, (".py", ".pyc")):
        path = ours.__path__
        if folder not in path:
            path.append(folder)


def _is_from(name: str, folders: Iterable[str]) -> bool:
    """Is what we imported under this name the very module that lies in these folders?"""
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if origin is None:
        return False
    home = os.path.dirname(origin)
    if hasattr(module, "__path__"):
        home = os.path.dirname(home)
    return os.path.realpath(home) in {os.path.realpath(folder) for folder in folders}


def _preload(names: Iterable[str]) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError:
            pass  # optional; whoever needs it will say so


def _top(name: str) -> str:
    return name.partition(".")[0]


def _take_out(into: dict[str, ModuleType]) -> None:
    """Move every module under a shadowed name out of ``sys.modules``."""
    for name in [name for name in sys.modules if _top(name) in _state.shadowed]:
        into[name] = sys.modules.pop(name)


class own_imports:  # reads as a statement: `with own_imports(): import tempfile`
    """Within this block, imports see our modules and never the application's.

    Nests.  A release that shadows nothing pays nothing.  Where one does, a thread of the application that imports one
    of those very names in this moment would get ours, so: only at start, or where everything has been imported before.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        if not _state.shadowed:
            return
        _state.depth += 1
        if _state.depth == 1:
            _take_out(_state.theirs)
            sys.modules.update(_state.hidden)
            _state.saved_path, sys.path = sys.path, list(_state.own_path)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not _state.shadowed:
            return
        _state.depth -= 1
        if _state.depth == 0:
            _take_out(_state.hidden)
            sys.modules.update(_state.theirs)
            _state.theirs.clear()
            sys.path = _state.saved_path
