"""quiesce.toml and options: what they become, and every way of getting them wrong."""

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor import config, config_show
from quiesce.supervisor.config import Loaded, Settings, load_settings, value_of
from quiesce.supervisor.config_keys import KEYS, SECTIONS
from quiesce.supervisor.cpus import usable_cpus

APP = '[service]\napp = "shop:app"\n'
Load = Callable[..., Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load ./quiesce.toml with this text (None: there is none)."""

    def load(
        text: str | None = APP, name: str | None = None, file: str | None = None, **options: Any
    ) -> Loaded:
        if text is not None:
            (tmp_path / "quiesce.toml").write_text(text)
        return load_settings(options, name, file, str(tmp_path), etc=str(tmp_path / "etc"))

    return load


def refused(load: Load, *args: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args, **options)
    return str(caught.value)


# The table, the structs and the documentation agree


def test_the_table_of_keys_and_the_structs_have_the_same_fields() -> None:
    for section in SECTIONS:
        if section == "listen":
            continue
        struct = {field.name: field.type for field in msgspec.structs.fields(Settings)}[section]
        assert [key.leaf for key in KEYS if key.section == section] == list(struct.__struct_fields__)


def test_no_two_keys_share_an_option() -> None:
    flags = [key.flag for key in KEYS]
    assert len(set(flags)) == len(flags)


def test_the_defaults_survive_their_own_reader(load: Load) -> None:
    loaded = load()
    for key in KEYS:
        if key.name not in ("service.app", "service.workers", "service.release"):
            assert value_of(loaded.settings, key) == key.default, key.name
            assert loaded.origins[key.name] == "default"


def test_what_show_config_prints_is_toml_that_means_the_same(load: Load, tmp_path: Path) -> None:
    loaded = load(
        APP
        + 'env = { A = "x=\\"1\\"", "B.C" = "\\u00e9" }\n[rollout]\nbake = "1500ms"\nwarmup = ["/", "/a"]\n'
        '[[listen]]\naddress = "unix:x.sock"\nmode = "660"\n'
    )
    again: dict[str, Any] = {}
    for name, text, _ in config_show.rows(loaded):
        value = tomllib.loads(f"x = {text}")["x"]
        if name.startswith("listen[0]."):
            again.setdefault("listen", [{}])[0][name.partition(".")[2]] = value
        else:
            again[name] = value
    listen = again.pop("listen")
    listen[0] = {key: value for key, value in listen[0].items() if value != ""}
    assert load_settings({**again, "listen": listen}, None, None, str(tmp_path)).settings == loaded.settings


def test_show_config_names_every_key_with_its_origin(load: Load) -> None:
    rows = {name: (text, origin) for name, text, origin in config_show.rows(load(APP, bake="5s"))}
    assert rows["service.app"] == ('"shop:app"', "quiesce.toml")
    assert rows["rollout.bake"] == ('"5s"', "option --bake")
    assert rows["limits.header_bytes"] == ('"32KiB"', "default")
    assert rows["listen[0].address"] == ('"127.0.0.1:8000"', "default")
    assert {key.name for key in KEYS} <= set(rows)
    document = config_show.document(load(None))
    assert document["settings"]["rollout.bake"] == {"value": 10.0, "text": '"10s"', "origin": "default"}


# Where it comes from


def test_without_a_file_the_application_is_enough(load: Load, tmp_path: Path) -> None:
    loaded = load(None, app="shop:app")
    assert loaded.file is None and loaded.settings.service.release == str(tmp_path)
    assert loaded.settings.listen[0].address == "127.0.0.1:8000" and loaded.settings.listen[0].name == "http"
    assert loaded.settings.service.workers == usable_cpus() >= 1


def test_without_anything_it_says_what_to_write(load: Load, tmp_path: Path) -> None:
    text = refused(load, None, name="shop")
    assert "quiesce run shop.wsgi:application" in text and str(tmp_path / "etc/shop.toml") in text


def test_a_file_without_the_application_says_so(load: Load) -> None:
    assert refused(load, "[service]\n") == (
        'quiesce.toml: "service.app" is missing; write app = "module:attribute" under [service]'
    )


def test_the_folder_of_etc_is_the_last_resort_and_gives_no_release(load: Load, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/shop.toml").write_text(APP)
    loaded = load(None, name="shop")
    assert loaded.file == str(tmp_path / "etc/shop.toml") and loaded.settings.service.name == "shop"
    assert loaded.settings.service.release == str(tmp_path)
    assert load(APP, name="shop").file == str(tmp_path / "quiesce.toml")


def test_config_option_wins_and_its_folder_is_what_paths_are_relative_to(load: Load, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.toml").write_text(
        APP
        + 'env_files = ["a.env", "/b.env"]\n[[listen]]\naddress = "unix:run/x.sock"\n[log]\nfile = "x.log"\n'
    )
    settings = load(APP, file="sub/x.toml").settings
    sub = str(tmp_path / "sub")
    assert settings.service.release == sub
    assert settings.service.env_files == (f"{sub}/a.env", "/b.env")
    assert settings.listen[0].address == f"unix:{sub}/run/x.sock"
    assert settings.log.file == f"{sub}/x.log"
    assert (settings.service.app_dir, settings.service.python) == (".", "")


def test_options_are_relative_to_the_working_directory(load: Load, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.toml").write_text(APP + 'release = "r1"\n')
    settings = load(APP, file="sub/x.toml", release="./r2", log_file="l", bind=["unix:s"]).settings
    assert settings.service.release == str(tmp_path / "r2")
    assert settings.log.file == str(tmp_path / "l") and settings.listen[0].address == f"unix:{tmp_path}/s"
    assert load(APP, release="../r/../x").settings.service.release == f"{tmp_path}/../r/../x"


def test_options_win_and_tables_are_merged_name_by_name(load: Load) -> None:
    loaded = load(
        APP + 'workers = 3\nenv = { A = "1", B = "2" }\n[rollout]\nbake = "1s"\nwarmup = ["/x"]\n',
        workers="5",
        env=["B=3", "C=a=b"],
        warmup=["/y"],
        **{"rollout.bake": "0.1"},
    )
    settings = loaded.settings
    assert settings.service.workers == 5 and settings.rollout.bake == 0.1
    assert settings.service.env == {"A": "1", "B": "3", "C": "a=b"} and settings.rollout.warmup == ("/y",)
    assert loaded.origins["service.workers"] == "option --workers"


def test_the_name_of_the_command_line_wins(load: Load) -> None:
    text = APP + 'name = "file"\n'
    assert load(text).settings.service.name == "file"
    assert load(text, name="line").settings.service.name == "line"


def test_reading_again_sees_the_new_file_and_keeps_the_options(load: Load, tmp_path: Path) -> None:
    loaded = load(APP, workers=7)
    (tmp_path / "quiesce.toml").write_text(APP + "threads = 2\n")
    again = loaded.reload()
    assert (again.settings.service.workers, again.settings.service.threads) == (7, 2)
    assert loaded.reload({"release": "/r9"}).settings.service.release == "/r9"
    (tmp_path / "quiesce.toml").write_text("x")
    with pytest.raises(ConfigError, match="not valid TOML"):
        loaded.reload()


def test_values_are_decoded_into_their_units(load: Load) -> None:
    settings = load(
        APP
        + 'umask = "027"\n[limits]\nheader_bytes = "64KiB"\nbody_timeout = "1m"\n[rollout]\nmax_error_rate = 0\n'
        '[[listen]]\nname = "a"\naddress = "unix:/x"\nmode = "0o660"\nbacklog = 5\n[[listen]]\naddress = "fd://web"\n'
    ).settings
    assert settings.service.umask == 0o027 and settings.limits.header_bytes == 65536
    assert settings.limits.body_timeout == 60.0 and settings.rollout.max_error_rate == 0
    assert (settings.listen[0].mode, settings.listen[0].backlog) == ("0660", 5)
    assert settings.listen[1].name == "web" and settings.listen[1].parsed().name == "web"


def test_bound_addresses_get_names_and_port_0_may_be_there_twice(load: Load) -> None:
    listeners = load(APP, bind=["127.0.0.1:0", "127.0.0.1:0", "fd://x"]).settings.listen
    assert [item.name for item in listeners] == ["http", "http2", "x"]


# Every way of getting it wrong

TOML_ERRORS = [
    ('[rollout]\nhelth_path = "/"', 'unknown key "rollout.helth_path"; did you mean "health_path"?'),
    ('health_path = "/"', 'unknown key "service.health_path"; did you mean "health_path" in [rollout]?'),
    ("xyzzy = 1", 'unknown key "service.xyzzy"; `quiesce check --show-config` lists every key'),
    (
        "[rollout]\ncanary = 1",
        '"rollout.canary": canary rollouts come with a later version of quiesce; leave it out',
    ),
    ("[tls]", '"tls": TLS comes with a later version of quiesce; leave it out, and terminate TLS in front'),
    ("[rollot]", 'unknown key "rollot"; did you mean [rollout]?'),
    ("[[listne]]", 'unknown key "listne"; did you mean [[listen]]?'),
    ('workers = "many"', '"service.workers" wants a whole number, not "many"'),
    ("workers = true", '"service.workers" wants a whole number, not true'),
    ("workers = 2.5", '"service.workers" wants a whole number, not 2.5'),
    ("workers = 0", '"service.workers" wants a whole number from 1 to 1000, not 0'),
    ("workers = 1001", '"service.workers" wants a whole number from 1 to 1000, not 1001'),
    ("threads = 0", '"service.threads" wants a whole number from 1'),
    ("release = 5", '"service.release" wants text in quotes, not 5'),
    ('interface = "wsgy"', 'wants one of auto, wsgi, asgi, native, not "wsgy"; did you mean "wsgi"?'),
    ("interface = 5", '"service.interface" wants text in quotes, not 5'),
    ('name = "a/b"', '"service.name" wants 1 to 64 letters, digits, dots, dashes or underscores, not "a/b"'),
    ('name = ".."', '"service.name" wants 1 to 64 letters'),
    ("umask = 22", '"service.umask" wants octal mode bits in quotes such as "022", not 22'),
    ("env = { A = 1 }", '"service.env.A" wants text in quotes, not 1'),
    ("env = 1", '"service.env" wants a table of texts, not 1'),
    ('env = { "A=B" = "1" }', '"service.env" has "A=B", which cannot be an environment variable'),
    ("env_files = [1]", '"service.env_files" wants a list of texts, not 1'),
    ('env_files = "x"', '"service.env_files" wants a list of texts, not "x"'),
    ('[rollout]\nbake = "5 s"', '"rollout.bake" wants a duration such as "30s", "500ms" or "5m", not "5 s"'),
    ('[rollout]\nbake = "-5s"', '"rollout.bake" wants a duration'),
    ('[rollout]\nstart_timeout = "0s"', '"rollout.start_timeout" wants a duration from 0.001'),
    ("[rollout]\nmax_error_rate = 1.5", '"rollout.max_error_rate" wants a number from 0 to 1, not 1.5'),
    ("[rollout]\nmax_error_rate = nan", '"rollout.max_error_rate" wants a number from 0 to 1, not nan'),
    (
        '[rollout]\nhealth_path = "healthz"',
        '"rollout.health_path" wants a path such as "/healthz", not "healthz"',
    ),
    ('[rollout]\nhealth_path = "/a b"', '"rollout.health_path" wants a path'),
    ('[rollout]\nhealth_host = "a\\r\\nb"', '"rollout.health_host" wants a host name'),
    (
        '[rollout]\nhealth_headers = { "A:" = "" }',
        '"rollout.health_headers" has "A:", which is no HTTP header',
    ),
    (
        '[rollout]\nhealth_headers = { A = "\\n" }',
        '"rollout.health_headers" has "A", which is no HTTP header',
    ),
    ('[rollout]\nwarmup = ["x"]', '"rollout.warmup" wants paths such as "/", not "x"'),
    ('[limits]\nheader_bytes = "1 lot"', '"limits.header_bytes" wants a size such as "64KiB"'),
    ("[limits]\nheader_bytes = 1", '"limits.header_bytes" wants a size from 256'),
    ('[log]\nlevel = "loud"', '"log.level" wants one of debug, info, warning, error, not "loud"'),
    ('[[listen]]\nadress = ":80"', 'unknown key "listen.adress"; did you mean "address"?'),
    ('[[listen]]\nzzz = ":80"', 'unknown key "listen.zzz"; a listener has name, address'),
    ("[[listen]]", '"listen.address" wants an address; write address = "127.0.0.1:8000"'),
    ("[[listen]]\naddress = 80", '"listen.address" wants an address, not 80'),
    ('[[listen]]\naddress = "80"', 'cannot listen on "80": for port 80'),
    ('[listen]\naddress = ":80"', "write [[listen]] with double brackets"),
    ('[[listen]]\naddress = ":80"\nbacklog = "x"', '"listen.backlog" wants a whole number'),
    (
        '[[listen]]\naddress = ":80"\nbacklog = 0',
        '"listen.backlog" wants a whole number from 1 to 65535, not 0',
    ),
    ('[[listen]]\naddress = ":80"\nname = "a b"', '"listen.name" wants letters, digits, dots or dashes'),
    ('[[listen]]\naddress = ":80"\nmode = "600"', "are for unix sockets with a path, not for 0.0.0.0:80"),
    ('[[listen]]\naddress = "unix:/x"\nmode = "rw"', '"listen.mode" wants octal mode bits'),
    ('[[listen]]\naddress = ":80"\n[[listen]]\naddress = "*:80"', '"listen.address" has "0.0.0.0:80" twice'),
    (
        '[[listen]]\nname = "a"\naddress = ":80"\n[[listen]]\nname = "a"\naddress = ":81"',
        '"listen.name" has "a" twice; give each listener a name of its own',
    ),
    (
        "[log]\naccess = true",
        '"log.access" comes with a later version of quiesce (the access log); leave it out',
    ),
    ('[log]\nformat = "json"', '"log.format" comes with a later version'),
    ('[rollout]\nready_path = "ready"', '"rollout.ready_path" wants a path such as "/ready", not "ready"'),
    ('[rollout]\nready_path = "/r?x=1"', '"rollout.ready_path" wants a path'),
    (
        '[rollout]\nready_path = "/h"\nhealth_path = "/h?deep=1"',
        '"rollout.ready_path" wants a path of its own',
    ),
    ('[rollout]\ndrain_delay = "soon"', '"rollout.drain_delay" wants a duration such as "30s"'),
    (
        '[[listen]]\naddress = "fd://quiesce.lock"',
        '"listen.address" has "fd://quiesce.lock", a name of quiesce\'s own; choose another',
    ),
]


@pytest.mark.parametrize(("text", "says"), TOML_ERRORS)
def test_an_error_names_file_key_and_cure(load: Load, text: str, says: str) -> None:
    message = refused(load, APP + text)
    assert message.startswith("quiesce.toml: ") and says in message, message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x =", "quiesce.toml: not valid TOML: "),
        ("workers = 4", 'quiesce.toml: unknown key "workers"; did you mean "workers" in [service]?'),
        ("service = 1", "quiesce.toml: [service] wants to be a table, not 1"),
        ("listen = 1", 'quiesce.toml: "listen" wants [[listen]] tables, not 1'),
        ('listen = []\n[service]\napp = "x:y"', 'quiesce.toml: "listen" wants at least one listener'),
        ('[service]\napp = "app.py"', 'wants module:attribute such as "shop.wsgi:application", not "app.py"'),
        ('[service]\napp = "./web/app.py:x"', 'that is a file, its module would be "web.app"'),
        ('[service]\napp = "a b"', '"service.app" wants module:attribute'),
        ("[service]\napp = 5", '"service.app" wants text in quotes, not 5'),
    ],
)
def test_errors_of_the_whole_file(load: Load, text: str, says: str) -> None:
    assert says in refused(load, text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": "x"}, '--workers wants a whole number, not "x"'),
        ({"bake": "soon"}, '--bake wants a duration such as "30s", "500ms" or "5m", not "soon"'),
        ({"max_error_rate": "half"}, '--max-error-rate wants a number, not "half"'),
        (
            {"log_level": "infos"},
            '--log-level wants one of debug, info, warning, error, not "infos"; did you mean "info"?',
        ),
        ({"env": ["A"]}, '--env wants NAME=VALUE, not "A"'),
        ({"health_headers": "x"}, '--health-headers wants NAME=VALUE, not "x"'),
        ({"bind": ["nowhere"]}, 'cannot listen on "nowhere": write one of'),
        ({"bind": [":80", ":80"]}, '--bind has "0.0.0.0:80" twice; leave one out'),
        ({"log_access": True}, "--log-access comes with a later version"),
        ({"interface": "\udc80"}, "'\\udc80' is not valid text"),
        ({"helth_path": "/"}, "unknown option --helth-path; did you mean --health-path?"),
        ({"service.app": "x y"}, 'APP wants module:attribute such as "shop.wsgi:application", not "x y"'),
    ],
)
def test_an_error_names_the_option(load: Load, options: dict[str, Any], says: str) -> None:
    assert refused(load, APP, **options).startswith(says)


def test_a_bad_name_is_refused_before_it_is_part_of_a_path(load: Load) -> None:
    assert refused(load, None, name="../x").startswith("--name wants 1 to 64 letters")


def test_files_that_cannot_be_read(load: Load, tmp_path: Path) -> None:
    assert refused(load, None, file="none.toml") == (
        "cannot read the configuration none.toml: No such file or directory"
    )
    assert refused(load, None, file=".").startswith("cannot read the configuration .: Is a directory")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    assert refused(load, None, file="latin.toml") == "latin.toml: not UTF-8 text (byte 5); save it as UTF-8"
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    assert "larger than 1 MiB" in refused(load, None, file="big.toml")
    os.symlink("nowhere", tmp_path / "quiesce.toml")
    assert refused(load, None).startswith("cannot read the configuration quiesce.toml")


def test_applications_of_every_form_pass(load: Load) -> None:
    for app in (
        "shop",
        "shop.wsgi",
        "shop.wsgi:app",
        "shop:create_app()",
        "shop:make('x').wsgi",
        "größe:app",
    ):
        assert load(None, app=app).settings.service.app == app


def test_a_misspelling_of_msgspecs_own_words_would_be_noticed() -> None:
    """The translation reads msgspec's messages: a version that words them differently must fail here."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"workers": "x"}, msgspec.defstruct("S", [("workers", int)]))
    assert re.search(r" - at `\$\.(\w+)`", str(caught.value))
    assert config._PATH.search("Expected `int`, got `str` - at `$.listen[0].backlog`").groups() == (
        "listen",
        "backlog",
    )


# CPUs


def test_quotas_of_every_level_count_and_are_rounded_up(tmp_path: Path) -> None:
    have = len(os.sched_getaffinity(0))
    proc, group = tmp_path / "proc/self", tmp_path / "sys/fs/cgroup"
    proc.mkdir(parents=True)
    (group / "a/b").mkdir(parents=True)
    assert usable_cpus(str(tmp_path)) == have
    (proc / "cgroup").write_text("0::/a/b\n")
    (group / "a/b/cpu.max").write_text("max 100000\n")
    assert usable_cpus(str(tmp_path)) == have
    (group / "a/cpu.max").write_text("50000 100000\n")
    assert usable_cpus(str(tmp_path)) == 1
    (group / "a/cpu.max").write_text("150000 100000\n")
    assert usable_cpus(str(tmp_path)) == min(2, have)
    (group / "a/cpu.max").write_text("garbage")
    assert usable_cpus(str(tmp_path)) == have


def test_quotas_of_the_first_cgroup_version_count(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc/self", tmp_path / "sys/fs/cgroup/cpu,cpuacct/x"
    proc.mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "cgroup").write_text("5:memory:/x\n4:cpu,cpuacct:/x\n")
    (group / "cpu.cfs_quota_us").write_text("20000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(str(tmp_path)) == 1
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cpus(str(tmp_path)) == len(os.sched_getaffinity(0))
