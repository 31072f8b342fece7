"""Units: what is shipped comes from the generator, and the generator fits them to a configuration."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.cli_console import Console
from quiesce.supervisor.units import command, needed_store, shipped

SYSTEMD = Path(__file__).resolve().parents[3] / "systemd"
PLAIN = '[service]\napp = "shop:app"\nrelease = "/srv/shop"\nworkers = 2\n'
FD = '[[listen]]\naddress = "fd://http"\n'


class Asked:
    """`quiesce systemd NAME` on a configuration."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys
        self.notes = ""

    def __call__(self, text: str, name: str = "shop", **given: str) -> str:
        # Not below a temporary directory, as the command sees it: the unit would not see it there.
        args = {"print": "all", "quiesce": "/opt/quiesce/bin/quiesce", "output": None, **given}
        config = self._folder / f"{name}.toml"
        config.write_text(text)
        assert command(Namespace(name=name, config=str(config), **args), Console()) == 0
        told = self._capsys.readouterr()
        self.notes = told.err
        return told.out


@pytest.fixture
def asked(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr("quiesce.supervisor.units._EMPTIED", ("/tmp/not-here/",))
    return Asked(tmp_path, capsys)


def keys(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("unit", shipped())
def test_the_files_in_systemd_are_what_the_generator_makes(unit: str) -> None:
    assert (SYSTEMD / unit).read_text() == shipped()[unit]


def test_every_unit_in_systemd_is_made_by_the_generator() -> None:
    units = {path.name for path in SYSTEMD.iterdir() if path.suffix in (".service", ".socket")}
    assert units == set(shipped())


def test_every_rule_that_a_unit_names_stands_in_the_readme() -> None:
    named = {number for text in shipped().values() for number in re.findall(r"^# (\d+):", text, re.MULTILINE)}
    rules = set(re.findall(r"^(\d+)\. ", (SYSTEMD / "README.md").read_text(), re.MULTILINE))
    assert named and named <= rules


def test_a_plain_configuration_gets_the_shipped_units(asked: Asked) -> None:
    text = asked(PLAIN + FD, "default", print="service")
    wanted = shipped()["quiesce.service"].replace(
        "/etc/quiesce/default.toml", str(asked._folder / "default.toml")
    )
    ours = [line.replace("service default (", "service (") for line in without_comments(text)]
    assert ours == without_comments(wanted)
    assert keys(asked(PLAIN + FD, "default", print="socket"), "ListenStream") == ["80"]


@pytest.mark.parametrize(
    "workers, listeners, generations, store", [(64, 1, 3, 785), (2, 1, 1, 25), (300, 4, 3, 3620)]
)
def test_the_store_holds_every_generation_that_may_run(
    workers: int, listeners: int, generations: int, store: int
) -> None:
    assert needed_store(workers, listeners, generations) == store


def test_more_workers_need_a_larger_store_and_few_leave_room_to_scale(asked: Asked) -> None:
    assert keys(asked(PLAIN + FD), "FileDescriptorStoreMax") == ["1024"]
    many = PLAIN.replace("workers = 2", "workers = 500") + FD
    assert keys(asked(many), "FileDescriptorStoreMax") == [str(8 + 1 + 1502 * 4)]


def test_timeouts_and_files_follow_the_configuration(asked: Asked) -> None:
    rollout = '[rollout]\nstart_timeout = "10m"\nbake = "5m"\ndrain_timeout = "90s"\n'
    text = asked(PLAIN + FD + rollout + '[worker]\nexit_timeout = "7.5s"\n[limits]\nconnections = 200000\n')
    assert keys(text, "TimeoutStopSec") == ["123s"]
    assert keys(text, "TimeoutStartSec") == ["26min"]
    assert keys(text, "LimitNOFILE") == ["404096"]


def test_each_listener_gets_a_socket_unit_and_a_word_about_its_address(asked: Asked) -> None:
    listen = (
        '[[listen]]\naddress = "0.0.0.0:8080"\n[[listen]]\nname = "six"\naddress = "[::1]:8081"\nbacklog = 7\n'
        '[[listen]]\nname = "admin"\naddress = "unix:/run/a%b.sock"\nmode = "660"\nowner = "root"\ngroup = "adm"\n'
        '[[listen]]\naddress = "fd://metrics"\n'
    )
    text = asked(PLAIN + listen)
    sockets = (
        "quiesce-shop.socket quiesce-shop@six.socket quiesce-shop@admin.socket quiesce-shop@metrics.socket"
    )
    for key in ("Requires", "Sockets", "Also"):
        assert keys(text, key) == [sockets]
    assert keys(text, "FileDescriptorName") == ["http", "six", "admin", "metrics"]
    assert keys(text, "ListenStream") == [
        *("0.0.0.0:8080", "[::1]:8081", "/run/a%%b.sock", "/run/quiesce-shop@metrics.sock")
    ]
    assert keys(text, "BindIPv6Only") == ["ipv6-only"]
    assert keys(text, "Backlog") == ["65535", "7", "65535", "65535"]
    assert keys(text, "SocketMode") == ["0660", "0660"] and keys(text, "SocketGroup") == ["adm", "www-data"]
    assert 'write address = "fd://http" for 0.0.0.0:8080' in asked.notes
    assert "fd://metrics" not in asked.notes


def test_user_group_and_control_group(asked: Asked) -> None:
    assert keys(asked(PLAIN + FD), "User") == ["quiesce"]
    assert "useradd" in asked.notes
    named = PLAIN + 'user = "shop"\ngroup = "web"\ncontrol_group = "deploy"\n' + FD
    text = asked(named)
    assert (keys(text, "User"), keys(text, "Group")) == (["shop"], ["web"])
    assert keys(text, "SupplementaryGroups") == ["deploy"]
    assert "useradd" not in asked.notes


def test_what_lies_in_a_home_or_is_written_elsewhere_is_let_in(asked: Asked) -> None:
    text = asked(PLAIN.replace("/srv", "/home/shop") + FD + '[log]\nfile = "/var/log/shop/a b.log"\n')
    assert keys(text, "ProtectHome") == ["read-only"] and "home" in asked.notes
    assert keys(text, "ReadWritePaths") == ["-/var/log/shop"]
    spaced = asked(PLAIN + FD + '[log]\nfile = "/var/log/my shop/x"\n')
    assert keys(spaced, "ReadWritePaths") == ['"-/var/log/my shop"']
    own = asked(PLAIN + FD + '[log]\nfile = "/var/lib/quiesce/shop/x"\n')
    assert keys(own, "ReadWritePaths") == []


def test_written_to_a_directory(asked: Asked, tmp_path: Path) -> None:
    out = tmp_path / "units"
    out.mkdir()
    told = asked(PLAIN + FD, output=str(out))
    assert sorted(told.split()) == sorted(str(path) for path in out.iterdir())
    assert {path.name for path in out.iterdir()} == {"quiesce-shop.service", "quiesce-shop.socket"}
    assert (out / "quiesce-shop.service").stat().st_mode & 0o777 == 0o644
    assert (out / "quiesce-shop.socket").read_text() == asked(PLAIN + FD, print="socket")


@pytest.mark.parametrize(
    "text, given, why",
    [
        (PLAIN + FD, {"name": "a/b"}, "letters, digits"),
        (PLAIN + FD, {"name": "-a"}, "option"),
        (PLAIN + FD, {"quiesce": "/opt/a$b/quiesce"}, "rename"),
        (PLAIN.replace("/srv/shop", "/tmp/not-here/shop") + FD, {}, "temporary directory"),
        (PLAIN + '[[listen]]\naddress = "127.0.0.1:0"\n', {}, "a number"),
        (PLAIN + FD, {"output": "/proc/nowhere"}, "--output"),
        ("[service]\nworkers = 2\n", {}, "service.app"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_cannot_be_meant_is_refused(
    asked: Asked, tmp_path: Path, text: str, given: dict[str, str], why: str
) -> None:
    config = tmp_path / "refused.toml"
    config.write_text(text)
    args = {"name": "shop", "print": "all", "quiesce": "/opt/q/quiesce", "output": None, **given}
    with pytest.raises(ConfigError, match=re.escape(why)):
        command(Namespace(config=str(config), **args), Console())


def test_a_configuration_that_is_not_there(asked: Asked) -> None:
    args = Namespace(name="no-such-shop", config=None, print="all", quiesce=None, output=None)
    with pytest.raises(ConfigError, match=r"/etc/quiesce/no-such-shop\.toml"):
        command(args, Console())


def test_as_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: Asked) -> None:
    import json

    config = tmp_path / "shop.toml"
    config.write_text(PLAIN + FD)
    args = Namespace(name="shop", config=str(config), print="all", quiesce="/opt/q/quiesce", output=None)
    assert command(args, Console(as_json=True)) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["files"]) == {"quiesce-shop.service", "quiesce-shop.socket"} and document["notes"]
