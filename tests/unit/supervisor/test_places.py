"""Where instances live, who may have planted what there, and the lock that makes one unique."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quiesce.shared.errors import ControlError
from quiesce.supervisor.pidfile import LockedError, remove_pidfile, take_lock, write_pidfile
from quiesce.supervisor.places import Places, connect, find_instances, resolve_places, short_path

ROOT, USER = 0, 1000


def resolve(
    name: str = "shop", runtime_dir: str | None = None, uid: int = USER, **environ: str
) -> tuple[str, str]:
    places = resolve_places(name, runtime_dir, environ={"HOME": "/home/u", **environ}, uid=uid)
    return places.runtime_dir, places.state_dir


def test_the_order_of_places() -> None:
    assert resolve(uid=ROOT) == ("/run/quiesce/shop", "/var/lib/quiesce/shop")
    assert resolve() == ("/tmp/quiesce-1000/shop", "/home/u/.local/state/quiesce/shop")
    assert resolve(TMPDIR="/var/tmp/")[0] == "/var/tmp/quiesce-1000/shop"
    assert resolve(XDG_RUNTIME_DIR="/run/user/1000", XDG_STATE_HOME="/s") == (
        *("/run/user/1000/quiesce/shop", "/s/quiesce/shop"),
    )
    assert resolve(XDG_RUNTIME_DIR="relative", XDG_STATE_HOME="relative") == resolve()
    assert resolve(RUNTIME_DIRECTORY="/run/x", STATE_DIRECTORY="/var/lib/x", XDG_RUNTIME_DIR="/r") == (
        *("/run/x", "/var/lib/x"),
    )


def test_of_several_directories_of_systemd_ours_is_named_after_us() -> None:
    assert resolve(RUNTIME_DIRECTORY="/run/other:/run/quiesce/shop:/run/z")[0] == "/run/quiesce/shop"
    assert resolve(RUNTIME_DIRECTORY="/run/a:/run/b")[0] == "/run/a"
    assert resolve(STATE_DIRECTORY="/var/lib/a:/var/lib/shop/")[1] == "/var/lib/shop/"


def test_a_runtime_dir_of_the_command_line_wins_and_holds_the_state() -> None:
    assert resolve(runtime_dir="/x", RUNTIME_DIRECTORY="/run/y", uid=ROOT) == ("/x", "/x/state")
    assert resolve(runtime_dir="/x", STATE_DIRECTORY="/s") == ("/x", "/s")
    assert resolve(runtime_dir="x")[0] == f"{Path.cwd()}/x"


def test_the_paths_of_an_instance() -> None:
    places = Places("shop", "/r", "/s")
    assert [places.control_sock, places.lock, places.pid, places.log] == [
        *("/r/control.sock", "/r/lock", "/r/pid", "/s/shop.log"),
    ]


def test_directories_are_made_with_the_right_modes_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Places("shop", str(tmp_path / "a/r"), str(tmp_path / "b/s")).create()
        Places("shop", str(tmp_path / "p/r"), str(tmp_path / "b/s"), private=True).create()
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/r", "b/s", "p", "p/r")}
    assert modes == {"a": 0o755, "a/r": 0o755, "b/s": 0o700, "p": 0o700, "p/r": 0o700}


def test_what_is_there_already_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir(mode=0o750)
    (tmp_path / "r").chmod(0o750)
    Places("shop", str(tmp_path / "r"), str(tmp_path / "r/state")).create()
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o750


def own_temporary(tmp_path: Path) -> Places:
    environ = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    uid = os.geteuid() or 12345  # root has /run/quiesce, so pretend; create() asks for the real one
    places = resolve_places("shop", environ=environ, uid=uid)
    return places._replace(runtime_dir=f"{tmp_path}/quiesce-{os.geteuid()}/shop")


def test_the_directory_in_the_temporary_directory_is_ours_alone(tmp_path: Path) -> None:
    places = own_temporary(tmp_path)
    assert places.private
    places.create()
    base = Path(places.runtime_dir).parent
    assert [stat.S_IMODE(path.stat().st_mode) for path in (base, base / "shop")] == [0o700, 0o700]
    places.create()


@pytest.mark.parametrize("plant", ["symlink", "file", "open"])
def test_what_somebody_planted_in_the_temporary_directory_is_refused(tmp_path: Path, plant: str) -> None:
    places = own_temporary(tmp_path)
    base, target = Path(places.runtime_dir).parent, tmp_path / "target"
    target.mkdir(mode=0o700)
    if plant == "symlink":
        base.symlink_to(target)
    elif plant == "file":
        base.write_text("")
    else:
        base.mkdir()
        base.chmod(0o777)
    with pytest.raises(ControlError, match="somebody else may have put it there; remove it"):
        places.create()
    assert not list(target.iterdir()), "something was made behind the symlink"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_in_the_temporary_directory_is_refused(tmp_path: Path) -> None:
    places = own_temporary(tmp_path)
    base = Path(places.runtime_dir).parent
    base.mkdir(mode=0o700)
    os.chown(base, 12345, -1)
    with pytest.raises(ControlError, match="somebody else may have put it there"):
        places.create()


def test_a_directory_that_everybody_writes_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r").chmod(0o1777)
    with pytest.raises(ControlError, match="everybody can write in"):
        Places("shop", str(tmp_path / "r"), str(tmp_path / "s")).create()


def test_directories_that_cannot_be_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match="cannot make the directory"):
        Places("shop", str(tmp_path / "file/r"), str(tmp_path / "s")).create()
    with pytest.raises(ControlError, match="is not a directory"):
        Places("shop", str(tmp_path / "file"), str(tmp_path / "s")).create()


# Finding instances


def listen_in(folder: Path) -> socket.socket:
    folder.mkdir(parents=True, mode=0o700)
    sock = socket.socket(socket.AF_UNIX)
    with short_path(str(folder / "control.sock")) as path:
        sock.bind(path)
    sock.listen(1)
    return sock


def test_only_what_answers_runs_in_whatever_place(tmp_path: Path) -> None:
    xdg, run, tmp = tmp_path / "xdg", tmp_path / "run", tmp_path / "tmp"
    (tmp / f"quiesce-{os.geteuid()}").mkdir(parents=True, mode=0o700)
    folders = [
        *(xdg / "quiesce/b", run / "quiesce/a", tmp / f"quiesce-{os.geteuid()}/c", tmp_path / "unit/d"),
    ]
    socks = [listen_in(folder) for folder in folders]
    listen_in(xdg / "quiesce/dead").close()
    (xdg / "quiesce/empty").mkdir()
    (xdg / "quiesce/stray").write_text("")
    environ = {
        "XDG_RUNTIME_DIR": str(xdg),
        "TMPDIR": str(tmp),
        "RUNTIME_DIRECTORY": f"{tmp_path}/unit/d:{xdg}/quiesce/b",
    }
    try:
        found = find_instances(environ=environ, uid=os.geteuid(), run=str(run))
    finally:
        for sock in socks:
            sock.close()
    assert [(item.places.name, item.denied) for item in found] == [(name, False) for name in "abcd"]
    assert found[0].places.runtime_dir == str(run / "quiesce/a")


def test_a_full_queue_is_still_an_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.supervisor.places.connect.__defaults__", (0.05,))
    with listen_in(tmp_path / "quiesce/a") as sock:
        sock.listen(0)
        with connect(str(tmp_path / "quiesce/a/control.sock")):
            found = find_instances(environ={}, uid=0, run=str(tmp_path))
    assert [item.places.name for item in found] == ["a"]


def test_a_socket_planted_in_the_temporary_directory_is_not_talked_to(tmp_path: Path) -> None:
    base = tmp_path / f"quiesce-{os.geteuid()}"
    base.mkdir(mode=0o700)
    with listen_in(base / "a"):
        environ = {"TMPDIR": str(tmp_path)}
        assert len(find_instances(environ=environ, uid=os.geteuid(), run="/nowhere")) == 1
        base.chmod(0o755)
        assert find_instances(environ=environ, uid=os.geteuid(), run="/nowhere") == []


# Lock and pid file


def test_the_lock_is_held_once_and_says_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    path = str(folder / "lock")
    lock = take_lock(path, "shop")
    assert not os.get_inheritable(lock.fd)
    with pytest.raises(LockedError) as caught:
        take_lock(path, "shop")
    assert caught.value.pid == os.getpid()
    assert str(caught.value).startswith(f"instance 'shop' runs already (pid {os.getpid()} holds {path})")
    lock.write_pid(7)
    with pytest.raises(LockedError, match=r"pid 7 holds"):
        take_lock(path, "shop")
    lock.release()
    take_lock(path, "shop").release()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = f"from quiesce.supervisor.pidfile import take_lock; take_lock({path!r}, 'shop'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LockedError) as caught:
            take_lock(path, "shop")
        assert caught.value.pid == holder.pid
        holder.kill()
    take_lock(path, "shop").release()


def test_a_lock_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlError, match="cannot open the lock"):
        take_lock(str(tmp_path / "lock"), "shop")
    assert not (tmp_path / "elsewhere").exists()


def test_the_pid_file_is_replaced_whole_and_removed_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("stale")
    write_pidfile(str(path), 42)
    assert path.read_text() == "42\n" and os.listdir(tmp_path) == ["pid"]
    remove_pidfile(str(path), 41)
    assert path.exists()
    remove_pidfile(str(path), 42)
    remove_pidfile(str(path), 42)
    assert not path.exists()
    with pytest.raises(ControlError, match="cannot write the pid file"):
        write_pidfile(str(tmp_path / "none/pid"), 1)
