"""JSON and YAML files, whatever they hold, and names of files in them."""

import os

import pytest

from mpamatch.errors import InputError, reason, shown, unknown
from mpamatch.files import read_json, read_yaml
from mpamatch.names import is_file_name

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def short(value):
    return "long" if isinstance(value, int) else repr(value)[:30]


def sentence(read, path):
    """What reading the file ends with: one sentence that names it."""
    with pytest.raises(InputError) as caught:
        read(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert told.endswith(".")
    assert "\n" not in told
    assert len(told) < len(str(path)) + 400
    return told


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b'{"a": ', "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "no JSON"),
        (b'{"train": [1], "train": [2]}', "has the key 'train' twice"),
        (b'{"parts": {"a": 1, "b": 2, "a": 1}}', "has the key 'a' twice"),
    ],
    ids=short,
)
def test_what_is_no_json_is_refused(tmp_path, content, says):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert says in sentence(read_json, path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: [", "as YAML"),
        (b"a: \xff", "as YAML"),
        (b"[" * 20_000, "nested too deeply"),
        (b"a: 2001-99-99", "month must be"),
        (b"a: !!timestamp 9", "as YAML"),
        (b"a: !!int x", "as YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "as YAML"),
        (b"a: " + b"9" * 5000, "as YAML"),
        (b"a: &a [*a]", "by its aliases"),
        (BOMB.encode(), "by its aliases"),
    ],
    ids=short,
)
def test_what_is_no_plain_yaml_is_refused(tmp_path, content, says):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert says in sentence(read_yaml, path)


def test_aliases_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 3}, e: 4}\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 3, "e": 4}}


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_folder_and_a_file_that_is_not_there(tmp_path, read):
    assert "Is a directory" in sentence(read, tmp_path)
    assert "no such file" in sentence(read, tmp_path / "nope")
    assert "File name too long" in sentence(read, tmp_path / ("x" * 300))


def test_names_of_files():
    for name in ("a.png", "é.png", "a b", "[x]", "..a", "a\\b" if os.sep == "/" else "b", "\udcff", "x" * 255):
        assert is_file_name(name), name
    for name in ("", ".", "..", "../a", "/a", "a/b", "a/", "./a", "a\0b", "\ud800", "x" * 256, "é" * 128, 7, None, []):
        assert not is_file_name(name), name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 99, f"'{'x' * 60}'…"),
        (12, "12"),
        (None, "None"),
        (["a", 1.5], "['a', 1.5]"),
        ({"a": [1]}, "{'a': [1]}"),
        (1 << 20_000, "a number of thousands of digits"),
    ],
    ids=short,
)
def test_a_value_is_shown_briefly(value, text):
    assert shown(value) == text


def test_a_value_of_millions_is_shown_at_once():
    value = ["x"] * 9
    for _ in range(60):
        value = [value] * 9
    assert len(shown(value)) <= 61
    assert len(shown({str(n): "y" * 999 for n in range(99)})) <= 61


def test_a_long_word_is_unknown_in_a_short_sentence():
    told = str(unknown("field", "x" * 100_000, ["a.b", "c.d"]))
    assert told == f"unknown field '{'x' * 60}'…: choose from a.b, c.d."


def test_what_a_library_says_is_one_short_line():
    assert reason(ValueError("line 1\n  line 2.\n")) == "line 1 line 2"
    assert reason(KeyError()) == "KeyError"
    assert reason("x" * 999) == "x" * 300 + "…"
