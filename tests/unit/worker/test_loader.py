"""Which callable, which interface, and what is said when there is none."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce.worker.apps.loader import LoadError, interface_of, load, one_line, own_frames_off

_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write a module of a new name and return that name; it is importable from sys.path[0]."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(text: str, name: str | None = None) -> str:
        name = name or f"loaded_{next(_numbers)}"
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def reason(spec: str) -> str:
    with pytest.raises(LoadError) as caught:
        load(spec)
    return str(caught.value)


@pytest.mark.parametrize("name", ["application", "app"])
def test_a_module_alone_means_its_application_or_app(write: Callable[..., str], name: str) -> None:
    assert load(write(f"{name} = 'found'")) == "found"


def test_application_is_preferred_to_app(write: Callable[..., str]) -> None:
    assert load(write("app = 'no'; application = 'yes'")) == "yes"


def test_dotted_attributes_and_factories(write: Callable[..., str]) -> None:
    name = write("class site:\n    class inner:\n        app = 'deep'\ndef make(x='made'):\n    return x\n")
    assert load(f"{name}:site.inner.app") == "deep"
    assert load(f"{name}:make()") == "made"


@pytest.mark.parametrize("spec", ["", ":app", "a b:c", "shop/wsgi.py", "shop:app:x", "shop:make(1)", "shop:"])
def test_what_is_no_specification_is_said_to_be_none(spec: str) -> None:
    if spec == "shop:":
        assert "no module named 'shop'" in reason(spec)
    else:
        assert "is not of the form 'module:attribute'" in reason(spec)


def test_a_missing_attribute_says_what_is_there(write: Callable[..., str]) -> None:
    name = write("import os\nsettings = {}\ndef application(e, s): ...\n")
    assert reason(f"{name}:aplication") == (
        f"module {name!r} has no attribute 'aplication'; it has: application, settings; did you mean 'application'?"
    )


def test_a_module_without_application_says_how_to_name_one(write: Callable[..., str]) -> None:
    name = write("def server(e, s): ...")
    assert f"no attribute 'application' and no 'app'; it has: server; name it: '{name}:NAME'" in reason(name)


def test_a_missing_module_is_not_a_missing_dependency(write: Callable[..., str], tmp_path: Path) -> None:
    write("", "pkg_a.__init__")
    write("import not_installed_anywhere", "pkg_a.wsgi")
    missing = reason("pkg_a.wsgy:app")
    assert missing.startswith(f"no module named 'pkg_a.wsgy' in {tmp_path}")
    assert missing.endswith("; did you mean 'pkg_a.wsgi'?")
    needs = reason("pkg_a.wsgi:app")
    assert (
        needs
        == f"module 'pkg_a.wsgi' needs 'not_installed_anywhere', which {sys.executable} does not have; install it there"
    )


def test_a_module_that_imports_its_own_name_is_a_dependency_story(write: Callable[..., str]) -> None:
    name = write("import sys\nraise ModuleNotFoundError('no x', name=__name__)\n")
    assert f"module {name!r} needs {name!r}" in reason(name)


def test_an_exception_on_import_keeps_its_traceback_without_our_frames(write: Callable[..., str]) -> None:
    name = write("def f():\n    1 / 0\nf()\n")
    with pytest.raises(LoadError) as caught:
        load(f"{name}:app")
    assert str(caught.value) == f"module {name!r} cannot be imported: ZeroDivisionError: division by zero"
    assert caught.value.__cause__ is not None
    tb = own_frames_off(caught.value.__cause__.__traceback__)
    assert tb is not None and tb.tb_frame.f_code.co_filename.endswith(f"{name}.py")


def test_a_syntax_error_is_said(write: Callable[..., str]) -> None:
    name = write("def broken(:\n")
    assert "SyntaxError: " in reason(name)


@pytest.mark.parametrize(
    ("text", "said"), [("sys.exit(3)", "(3)"), ("sys.exit()", "()"), ("sys.exit('no')", "('no')")]
)
def test_sys_exit_on_import_is_no_exit_of_ours(write: Callable[..., str], text: str, said: str) -> None:
    name = write(f"import sys\n{text}\n")
    assert reason(name) == f"module {name!r} called sys.exit{said} while it was imported"


def test_a_factory_that_raises_or_is_none(write: Callable[..., str]) -> None:
    name = write("def make():\n    raise RuntimeError('no database')\nvalue = {}\n")
    assert reason(f"{name}:make()") == f"factory {name}:make() raised RuntimeError: no database"
    assert "this is a dict and cannot be called; leave the () out" in reason(f"{name}:value()")


def test_one_line_survives_any_exception() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Bad()) == "Bad: (its text cannot be had)"
    assert one_line(ValueError("a\nb")) == "ValueError: a"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 9999))) == 400


# -- interfaces ---------------------------------------------------------------------------


def native(request: Any) -> None: ...
def native_more(request: Any, extra: int = 0) -> None: ...
def wsgi(environ: Any, start_response: Any) -> None: ...
async def asgi(scope: Any, receive: Any, send: Any) -> None: ...
def asgi_plain(scope: Any, receive: Any, send: Any) -> Any:
    return asgi(scope, receive, send)


class Object:
    def wsgi(self, environ: Any, start_response: Any) -> None: ...
    def __call__(self, environ: Any, start_response: Any) -> None: ...


class AsyncObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Static:
    @staticmethod
    def __call__(request: Any) -> None: ...


class WsgiClass:
    def __init__(self, environ: Any, start_response: Any) -> None: ...
    def __iter__(self) -> Iterator[bytes]:
        return iter(())


@functools.wraps(asgi)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return asgi(*args, **kwargs)


class Wrapping:
    """A middleware that shows the application's signature as its own."""

    def __init__(self, app: Any) -> None:
        functools.update_wrapper(self, app)
        self.app = app

    def __call__(self, *args: Any) -> Any:
        return self.app(*args)


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (native, "native"),
        (native_more, "native"),
        (lambda request: None, "native"),
        (Static(), "native"),
        (wsgi, "wsgi"),
        (Object(), "wsgi"),
        (Object().wsgi, "wsgi"),
        (WsgiClass, "wsgi"),
        (functools.partial(lambda config, environ, start: None, {}), "wsgi"),
        (functools.partial(lambda environ, start, *, config: None, config={}), "wsgi"),
        (functools.partial(lambda environ, start, config: None, config={}), "wsgi"),
        (asgi, "asgi"),
        (asgi_plain, "asgi"),
        (AsyncObject(), "asgi"),
        (AsyncObject().__call__, "asgi"),
        (functools.partial(functools.partial(lambda a, b, *rest: None, 1), 2, 3), None),
        (wrapped, "asgi"),
        (functools.partial(asgi), "asgi"),
        (lambda *args: None, None),
        (print, None),
    ],
)  # fmt: skip
def test_auto_tells_them_apart(app: Any, interface: str | None) -> None:
    if interface is not None:
        assert interface_of(app, "auto") == interface
        return
    with pytest.raises(LoadError, match="--interface"):
        interface_of(app, "auto")


def test_frameworks_are_what_they_are() -> None:
    flask, fastapi = pytest.importorskip("flask"), pytest.importorskip("fastapi")
    assert interface_of(flask.Flask("x"), "auto") == "wsgi"
    assert interface_of(fastapi.FastAPI(), "auto") == "asgi"
    assert interface_of(Wrapping(wsgi), "wsgi") == "wsgi"


@pytest.mark.parametrize("app", [AsyncObject, lambda: None, lambda a, b, c, d: None])
def test_what_is_none_of_them_is_refused_with_advice(app: Any) -> None:
    with pytest.raises(LoadError):
        interface_of(app, "auto")


def test_a_coroutine_with_one_parameter_is_not_native() -> None:
    async def handler(request: Any) -> None: ...

    with pytest.raises(LoadError, match="is a coroutine function and takes 1 positional"):
        interface_of(handler, "auto")


@pytest.mark.parametrize("wanted", ["wsgi", "asgi", "native"])
def test_what_was_asked_for_wins_but_must_be_callable(wanted: str) -> None:
    assert interface_of(lambda *a: None, wanted) == wanted
    with pytest.raises(LoadError, match="is a dict, which cannot be called"):
        interface_of({}, wanted)
