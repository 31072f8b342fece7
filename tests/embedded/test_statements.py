"""Every statement of the manual's two pages has a test, and every test's number is a statement."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

from embedded import test_seed_daemon, test_seed_responses
from quiesce import mhd

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "libmicrohttpd.md"
ROW = re.compile(r"^\| (.+) \| (\S.*) \| (.*) ?\|$", re.MULTILINE)


def numbers_of(module: ModuleType) -> set[str]:
    tests = (value for name, value in vars(module).items() if name.startswith("test_"))
    return {number for test in tests for number in getattr(test, "statements", ())}


def test_no_statement_without_a_test_and_no_test_without_a_statement() -> None:
    stated = set(re.findall(r"^\| ([RS]\d+) \|", PAGE.read_text(), re.MULTILINE))
    assert len(stated) > 50
    assert numbers_of(test_seed_responses) | numbers_of(test_seed_daemon) == stated


def rows() -> list[tuple[str, str, str]]:
    """What is there, how it is here, and how that is shown."""
    mapping = PAGE.read_text().partition("## Everything else")[2]
    return [row for row in ROW.findall(mapping) if row[0] != "there"]


def test_each_row_of_the_mapping_says_where_we_stand() -> None:
    assert len(rows()) > 90
    assert {state for _, state, _ in rows()} == {"same", "better", "later order"}
    later = {there for there, state, _ in rows() if state == "later order"}
    assert all(re.search("(?i)upgrade|tls|auth|post_process", there) for there in later)


def test_every_public_name_has_its_row() -> None:
    """The functions of libmicrohttpd 1.0.1, its flags and its options: there, or in a row of the later order."""
    mapping = " ".join(there for there, _, _ in rows())
    exported = set(vars(mhd))
    for name in FUNCTIONS.split():
        later = LATER.search(name)
        assert bool(later) is not (f"MHD_{name}" in exported), name
        said = re.sub("^(MHD_)?(create_response_)?", "", name)
        assert later or said in mapping, f"{name} has no row"
    for kind, prefix in ((mhd.MHD_FLAG, "MHD_(USE|ALLOW)_"), (mhd.MHD_OPTION, "MHD_OPTION_")):
        for member in kind:
            said = re.sub(prefix, "", member.name or "")
            families = ("HTTPS_", "DIGEST_AUTH_", "END", "MHD_NO_FLAG")
            known = (
                said in mapping
                or said.startswith(families)
                or said.endswith(("INTERNAL_THREAD", "INTERNALLY"))
            )
            assert known, f"{member.name} has no row"


LATER = re.compile("auth|post_process|upgrade|digest")
FUNCTIONS = """
start_daemon start_daemon_va stop_daemon quiesce_daemon add_connection run run_wait run_from_select run_from_select2
get_fdset get_fdset2 get_timeout get_timeout64 get_timeout64s get_timeout_i get_daemon_info is_feature_supported
get_version get_version_bin set_panic_func http_unescape free get_reason_phrase_for get_reason_phrase_len_for
get_connection_values get_connection_values_n lookup_connection_value lookup_connection_value_n set_connection_value
set_connection_value_n get_connection_info set_connection_option suspend_connection resume_connection queue_response
create_response_from_callback create_response_from_data create_response_from_buffer
create_response_from_buffer_static create_response_from_buffer_copy
create_response_from_buffer_with_free_callback create_response_from_buffer_with_free_callback_cls
create_response_from_fd create_response_from_fd64 create_response_from_fd_at_offset
create_response_from_fd_at_offset64 create_response_from_pipe create_response_from_iovec create_response_empty
create_response_for_upgrade upgrade_action set_response_options add_response_header add_response_footer
del_response_header get_response_header get_response_headers destroy_response
create_post_processor post_process destroy_post_processor basic_auth_get_username_password3
basic_auth_get_username_password queue_basic_auth_required_response3 queue_basic_auth_fail_response
digest_auth_check3 digest_auth_check_digest3 digest_auth_check2 digest_auth_check_digest2 digest_auth_check
digest_auth_check_digest digest_auth_get_request_info3 digest_auth_get_username3 digest_auth_get_username
digest_auth_calc_userhash digest_auth_calc_userhash_hex digest_auth_calc_userdigest digest_get_hash_size
queue_auth_required_response3 queue_auth_fail_response2 queue_auth_fail_response
"""


def test_every_test_that_the_mapping_names_exists() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    known = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = [(there, re.findall(r"`(test_\w+)`", shown), state) for there, state, shown in rows()]
    assert [there for there, tests, state in named if state == "better" and not tests] == []
    assert {test for _, tests, _ in named for test in tests} - known == set()
