"""Our constants have libmicrohttpd's values, as the header of the installed package says them."""

from __future__ import annotations

import os
import re
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from quiesce import mhd
from quiesce.worker.mhd import constants
from sdbox.box import install_by_apt

HEADER = Path("/usr/include/microhttpd.h")  # Debian: libmicrohttpd-dev
ENUMS = [
    kind
    for kind in vars(constants).values()
    if isinstance(kind, type) and issubclass(kind, (IntEnum, IntFlag))
]
ENUMS = [kind for kind in ENUMS if kind.__name__.startswith("MHD_")]
# What a header of 0.9.75 (Debian 12) does not have, from that of 1.0.1.
NEWER = {
    "MHD_USE_NO_THREAD_SAFETY": 1 << 19,
    "MHD_OPTION_DIGEST_AUTH_RANDOM_COPY": 35,
    "MHD_OPTION_DIGEST_AUTH_NONCE_BIND_TYPE": 36,
    "MHD_OPTION_HTTPS_PRIORITIES_APPEND": 37,
    "MHD_OPTION_CLIENT_DISCIPLINE_LVL": 38,
    "MHD_OPTION_APP_FD_SETSIZE": 39,
    "MHD_OPTION_SOCK_ADDR_LEN": 40,
    "MHD_OPTION_DIGEST_AUTH_DEFAULT_NONCE_TIMEOUT": 41,
    "MHD_OPTION_DIGEST_AUTH_DEFAULT_MAX_NC": 42,
    "MHD_RF_HEAD_ONLY_RESPONSE": 1 << 4,
    "MHD_FEATURE_HTTPS_COOKIE_PARSING": 24,
    "MHD_FEATURE_DIGEST_AUTH_RFC2069": 25,
    "MHD_FEATURE_DIGEST_AUTH_MD5": 26,
    "MHD_FEATURE_DIGEST_AUTH_SHA256": 27,
    "MHD_FEATURE_DIGEST_AUTH_SHA512_256": 28,
    "MHD_FEATURE_DIGEST_AUTH_AUTH_INT": 29,
    "MHD_FEATURE_DIGEST_AUTH_ALGO_SESSION": 30,
    "MHD_FEATURE_DIGEST_AUTH_USERHASH": 31,
    "MHD_FEATURE_EXTERN_HASH": 32,
    "MHD_FEATURE_DEBUG_BUILD": 33,
    "MHD_FEATURE_FLEXIBLE_FD_SETSIZE": 34,
}
LATER = re.compile(
    "MHD_(NO|YES|THREAD_NAMES|DIGEST_ALG_.*|UPGRADE_ACTION_.*|DAUTH_.*|GNUTLS.*)$"
)  # or not in an enum
OURS = {name: int(value) for kind in ENUMS for name, value in kind.__members__.items()}


def installed() -> dict[str, int]:
    """The values of all enumerators of the header."""
    text = re.sub(r"/\*.*?\*/|^#.*?(?<!\\)$", "", HEADER.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"_MHD_DEPR_IN_MACRO\s*\([^)]*\)|_MHD_FIXED_\w+", "", text)
    values: dict[str, int] = {}
    for body in re.findall(r"\benum\s+MHD_\w+\s*\{(.*?)\}", text, re.DOTALL):
        last = -1
        for name, expression in re.findall(r"(MHD_\w+)\s*(?:=\s*([^,]+))?(?:,|$)", body.strip()):
            last = value_of(expression, values) if expression else last + 1
            values[name] = last
    return values


def value_of(expression: str, known: dict[str, int]) -> int:
    """Alternatives and shifts of numbers and names."""
    value = 0
    for term in expression.split("|"):
        number, _, shift = term.strip().strip("()").partition("<<")
        number = number.strip().rstrip("U")
        value |= (known[number] if number in known else int(number, 0)) << int(shift or 0)
    return value


@pytest.fixture
def header() -> Path:
    """In CI it is installed, elsewhere only read: a test must not change a person's machine."""
    if not HEADER.exists() and os.environ.get("CI") and os.geteuid() == 0:
        install_by_apt("libmicrohttpd-dev")
    if not HEADER.exists():
        pytest.skip("libmicrohttpd-dev is not installed (apt-get install libmicrohttpd-dev)")
    return HEADER


@pytest.mark.timeout(600)
def test_our_numbers_are_those_of_the_installed_header(header: Path) -> None:
    theirs = installed()
    assert len(theirs) > 140
    common = OURS.keys() & theirs.keys()
    assert {name: OURS[name] for name in common} == {name: theirs[name] for name in common}
    assert OURS.keys() - common <= NEWER.keys()
    assert {name for name in theirs.keys() - OURS.keys() if not LATER.match(name)} == set()
    assert re.search(r"#define MHD_ICY_FLAG.*1\) << 31", header.read_text())


def test_the_numbers_of_newer_versions() -> None:
    assert {name: OURS[name] for name in NEWER} == NEWER
    assert mhd.MHD_ICY_FLAG == 1 << 31


def test_every_constant_is_exported() -> None:
    assert {name: int(getattr(mhd, name)) for name in OURS} == OURS
