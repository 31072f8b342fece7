"""Commands, options and keys that our pages name are there."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from docs.fences import fences
from docs.test_links import PAGES, ROOT
from quiesce.supervisor.cli_parser import UsageError, parse
from quiesce.supervisor.config_keys import BY_NAME as KEYS
from quiesce.supervisor.config_keys import LISTEN_KEYS, SECTIONS

SHELL = ("sh", "console")
SPAN = re.compile(r"`([^`\n]+)`")
TYPED = re.compile(r"(?:^|\s|bin/)quiesce (.*?)(?= #|$|[|;&(){}<>\\]|\d?>|')")
KEY = re.compile(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_]+)`")
#: What stands for a value: `quiesce scale N`.
NUMBER = re.compile(r"\bN\b")


def command_lines(text: str) -> list[str]:
    """What stands behind `quiesce`, in shell blocks and between backticks."""
    blocks = [line for fence in fences(text) if fence.language in SHELL for line in fence.body.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    typed = [found for line in (*blocks, *SPAN.findall(prose)) for found in TYPED.findall(line)]
    return [line for line in typed if not line.startswith(("serves", "goes on"))]  # its own words, in a block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.name + "/" + page.name))
def test_every_command_can_be_typed(page: Path) -> None:
    wrong = []
    for line in command_lines(page.read_text()):
        try:
            parse(shlex.split(NUMBER.sub("1", line.replace("…", ""))))
        except UsageError as exc:
            wrong.append(f"quiesce {line}: {exc}")
        except SystemExit as exc:
            assert exc.code == 0  # --help, --version
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.name + "/" + page.name))
def test_every_key_is_one(page: Path) -> None:
    text = page.read_text()
    unknown = {name for name in KEY.findall(text) if not name.endswith(".py") and name not in KEYS}
    for fence in fences(text):
        if fence.language != "toml":
            continue
        for section, content in tomllib.loads(fence.body).items():
            for item in content if isinstance(content, list) else [content]:
                known = (
                    LISTEN_KEYS
                    if section == "listen"
                    else [key for key in item if f"{section}.{key}" in KEYS]
                )
                unknown |= set(item) - set(known)
    assert unknown == set()


def test_lines_are_found_where_people_would_type_them() -> None:
    text = "`quiesce upgrade --force` and\n```sh\nln -s a b && quiesce stop  # `quiesce nothing`\n```\n"
    assert command_lines(text) == ["stop ", "upgrade --force"]


@pytest.mark.parametrize("folder", ["supervisor", "shared"])
def test_every_module_has_its_row(folder: str) -> None:
    readme = (ROOT / folder / "README.md").read_text()
    rows = re.findall(
        r"`([\w*]+\.py)`", "\n".join(line for line in readme.splitlines() if line.startswith("|"))
    )
    modules = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if not any(fnmatch.fnmatch(name, row) for row in rows)} == set()
