"""The reader of fenced blocks reads what its docstring says."""

from __future__ import annotations

import pytest

from docs.fences import Command, fences, pattern

DOCUMENT = """\
text
```python
# shop/wsgi.py   the application
x = 1
```
```console
$ one
$ two \\
    more
said
…
```
````text
```console
$ not a command
```
````
```console server
$ three
```
"""


def test_fences_are_read_in_order() -> None:
    found = fences(DOCUMENT)
    assert [fence.language for fence in found] == ["python", "console", "text", "console"]
    assert [fence.path for fence in found] == ["shop/wsgi.py", None, None, None]
    assert [fence.terminal for fence in found][1::2] == ["main", "server"]
    assert list(found[1].commands()) == [Command(7, "one", ""), Command(8, "two \\\n    more", "said\n…\n")]


def test_a_console_block_begins_with_a_command() -> None:
    with pytest.raises(ValueError, match="line 2"):
        list(fences("```console\noutput\n```\n")[0].commands())


@pytest.mark.parametrize(
    ("expected", "output", "matches"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a … c\n", "a b b c\n", True),
        ("a … c\n", "a b\nc\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\n", "a\n", True),
        ("…\na\n", "b\na\nc\n", False),
        ("1.0 (x)\n", "1.0 (x)  \n", True),
        ("1.0\n", "1x0\n", False),
        ("", "", True),
        ("", "a\n", False),
    ],
)
def test_wildcards(expected: str, output: str, matches: bool) -> None:
    assert bool(pattern(expected).fullmatch(output)) is matches
