"""``package.module:name`` → the callable, with an error that says what was found instead."""

import sys
from types import CodeType, ModuleType, TracebackType
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.isolation import own_imports

_DEFAULTS = ("application", "app")  # names that are tried when the specification has none
_CO_VARARGS, _CO_COROUTINE = 0x04, 0x80
_HERE = __file__.rpartition("/apps/")[0] + "/"


class LoadError(QuiesceError):
    """The application cannot be had.  ``__cause__`` is what it raised, if it did."""


def load(spec: str) -> Any:
    """Import the application and return its callable.

    Args:
        spec: ``module:attribute`` (dots allowed), ``module:factory()``, or ``module`` alone, whose
            ``application``, else ``app``, is meant.

    Raises:
        LoadError: One sentence says what is wrong.
    """
    name, _, attribute = (part.strip() for part in spec.partition(":"))
    is_factory = attribute.endswith("()")
    attribute = attribute.removesuffix("()")
    if not all(part.isidentifier() for part in name.split(".")) or (
        attribute and not all(part.isidentifier() for part in attribute.split("."))
    ):
        raise LoadError(
            f"application {spec!r} is not of the form 'module:attribute', 'module:factory()' or 'module'"
        )
    module = _import(name)
    found = _attribute(module, attribute) if attribute else _default(module)
    return _make(found, spec) if is_factory else found


def _import(name: str) -> ModuleType:
    try:
        # Not importlib.import_module(): __import__ takes the import system's own frames off the traceback.
        __import__(name)
    except ModuleNotFoundError as exc:
        raise LoadError(_missing(name, exc)) from exc
    except SystemExit as exc:
        raise LoadError(f"module {name!r} called sys.exit({_code(exc)}) while it was imported") from exc
    except BaseException as exc:
        raise LoadError(f"module {name!r} cannot be imported: {one_line(exc)}") from exc
    return sys.modules[name]


def _code(exc: SystemExit) -> str:
    return "" if exc.code is None else repr(exc.code)


def _missing(name: str, exc: ModuleNotFoundError) -> str:
    """The module itself is missing, or something that it imports: two different mistakes."""
    wanted = exc.name or ""
    itself = name == wanted or name.startswith(wanted + ".")
    if itself and own_frames_off(exc.__traceback__) is None:
        return f"no module named {wanted!r} in {sys.path[0]} (app_dir) or elsewhere on sys.path{_near_file(wanted)}"
    if not wanted:
        return f"module {name!r} cannot be imported: {one_line(exc)}"
    return f"module {name!r} needs {wanted!r}, which {sys.executable} does not have; install it there"


def _near_file(name: str) -> str:
    """ "; did you mean 'wsgi'?", from the modules that lie where this one was looked for."""
    import os

    folder = os.path.join(sys.path[0], *name.split(".")[:-1])
    try:
        entries = os.listdir(folder)
    except OSError:
        return ""
    parent = name.rpartition(".")[0]
    known = [entry.partition(".")[0] for entry in entries if entry.endswith(".py") or "." not in entry]
    known = [f"{parent}.{entry}" if parent else entry for entry in known if entry.isidentifier()]
    return _near(name, known)


def _near(name: str, known: list[str]) -> str:
    with own_imports():
        from difflib import get_close_matches
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    where = f"module {module.__name__!r}"
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as exc:
            raise LoadError(_no_attribute(where, found, part)) from (
                exc if own_frames_off(exc.__traceback__) else None
            )
        except BaseException as exc:
            raise LoadError(f"{where}: reading {part!r} raised {one_line(exc)}") from exc
        where = f"{where}: {part!r}" if found is module else f"{part!r} of {where}"
    return found


def _no_attribute(where: str, owner: Any, name: str) -> str:
    public = [key for key in dir(owner) if not key.startswith("_")]
    # Not what it imported, unless that is all: nobody serves a module.
    own = [key for key in public if not isinstance(getattr(owner, key, None), ModuleType)] or public
    listed = ", ".join(own[:12]) + (", …" if len(own) > 12 else "") if own else "nothing public"
    return f"{where} has no attribute {name!r}; it has: {listed}{_near(name, own)}"


def _default(module: ModuleType) -> Any:
    for name in _DEFAULTS:
        try:
            return getattr(module, name)
        except AttributeError:
            continue
    reason = _no_attribute(f"module {module.__name__!r}", module, "application")
    raise LoadError(
        reason.replace("'application'", "'application' and no 'app'", 1)
        + f"; name it: '{module.__name__}:NAME'"
    )


def _make(factory: Any, spec: str) -> Any:
    if not callable(factory):
        raise LoadError(f"{spec}: this is a {type(factory).__name__} and cannot be called; leave the () out")
    try:
        return factory()
    except SystemExit as exc:
        raise LoadError(f"factory {spec} called sys.exit({_code(exc)})") from exc
    except BaseException as exc:
        raise LoadError(f"factory {spec} raised {one_line(exc)}") from exc


def one_line(exc: BaseException) -> str:
    """Type and first line of an exception, of bounded length, whatever its ``__str__`` does."""
    try:
        text = str(exc).partition("\n")[0]
    except Exception:
        text = "(its text cannot be had)"
    name = type(exc).__name__
    return (f"{name}: {text}" if text else name)[:400]


def own_frames_off(tb: TracebackType | None) -> TracebackType | None:
    """The traceback without our frames, and the import system's, above the application's first."""
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not (name.startswith((_HERE, "<frozen importlib"))):
            return tb
        tb = tb.tb_next
    return None


# -- which interface ----------------------------------------------------------------------


def interface_of(app: Any, wanted: str) -> str:
    """``native``, ``wsgi`` or ``asgi``: what was asked for, or what the callable's parameters say.

    ASGI takes three (scope, receive, send), WSGI two (environ, start_response), a native handler one (request).

    Raises:
        LoadError: It cannot be called at all, or ``auto`` cannot tell.
    """
    if not callable(app):
        raise LoadError(
            f"the application is a {type(app).__name__}, which cannot be called; name a WSGI or ASGI application, "
            "a native handler, or a factory with ()"
        )
    if wanted != "auto":
        return wanted
    shape = _shape(app)
    if shape is None:
        raise LoadError(
            f"cannot tell which interface {_named(app)} has from its parameters; pass --interface wsgi, asgi or native"
        )
    required, is_async = shape
    if required == 3:
        return "asgi"  # not only coroutine functions: a plain one may return the awaitable
    if required in (1, 2) and not is_async:
        return "native" if required == 1 else "wsgi"
    kind = "is a coroutine function and " if is_async else ""
    raise LoadError(
        f"{_named(app)} {kind}takes {required} positional parameters: ASGI has 3, WSGI 2, a native handler 1 (neither "
        "of those a coroutine); is it a factory? then append (); else pass --interface"
    )


def _named(app: Any) -> str:
    name = getattr(app, "__qualname__", None) or type(app).__qualname__
    return f"{getattr(app, '__module__', None) or '?'}.{name}"


def _shape(app: Any) -> tuple[int, bool] | None:
    """How many positional parameters it requires, and whether calling it gives a coroutine.

    None: it takes any number, or does not say.  By code objects: inspect costs a worker more than all else here.
    """
    given, named = 0, frozenset[str]()
    while (partial := _as_partial(app)) is not None:
        app, count, names = partial
        given, named = given + count, named | names
    function, is_bound = _function_of(app)
    is_async = _is_coroutine_function(function)
    for _ in range(16):  # decorators made with functools.wraps pass everything on
        if not hasattr(function, "__wrapped__"):
            break
        function = function.__wrapped__
        is_async = is_async or _is_coroutine_function(function)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return _inspected(app, is_async)
    names_of = code.co_varnames[: code.co_argcount]
    defaults = len(getattr(function, "__defaults__", None) or ())
    required = names_of[is_bound + given : len(names_of) - defaults]
    count = sum(name not in named for name in required)
    if code.co_flags & _CO_VARARGS and count < 1:
        return None
    return count, is_async


def _as_partial(app: Any) -> tuple[Any, int, frozenset[str]] | None:
    """``functools.partial`` taken apart, without importing functools if nobody has."""
    functools = sys.modules.get("functools")
    if functools is None or not isinstance(app, functools.partial):
        return None
    return app.func, len(app.args), frozenset(app.keywords)


def _function_of(app: Any) -> tuple[Any, bool]:
    """The function that a call runs, and whether its first parameter is already given."""
    if isinstance(app, type):
        if _is_coroutine_function(getattr(app, "__call__", None)):  # noqa: B004
            raise LoadError(
                f"{_named(app)} is a class whose instances are called (ASGI 2, or it wants to be made first): "
                "name an instance, or append () to have one made"
            )
        made_by_init = app.__init__ is not object.__init__  # type: ignore[misc]
        return (app.__init__ if made_by_init else app.__new__), True  # type: ignore[misc]
    if hasattr(app, "__func__"):  # before __code__, which a bound method passes through
        return app.__func__, True
    if hasattr(app, "__code__"):
        return app, False
    call = type(app).__call__
    if hasattr(app, "__wrapped__") and not hasattr(call, "__code__"):
        return app, False
    return getattr(call, "__func__", call), not isinstance(vars(type(app)).get("__call__"), staticmethod)


def _is_coroutine_function(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    marked = getattr(function, "_is_coroutine_mark", None)  # inspect.markcoroutinefunction, Python 3.12
    return marked is not None or bool(isinstance(code, CodeType) and code.co_flags & _CO_COROUTINE)


def _inspected(app: Any, is_async: bool) -> tuple[int, bool] | None:
    """A callable without a code object (Cython, C): it may still carry a signature."""
    with own_imports():
        import inspect
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in kinds and p.default is p.empty for p in parameters)
    if count == 0:
        return None
    return count, is_async or inspect.iscoroutinefunction(app)
