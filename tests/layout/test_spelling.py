"""What systemd reads is what was meant: asked of systemd-escape and systemd-fstab-generator themselves."""

import subprocess

import pytest

from promoterd.errors import UsageError
from promoterd.layout.spelling import fstab_field, mount_unit, unit_value, unit_word

PATHS = [
    b"/srv/software",
    b"/srv/my-soft",
    b"/a b/c,d",
    b"/.hidden/.x",
    b"/a/b\\c",
    b"/p%q:r_s.t",
    "/übung".encode(),
    b"/-",
    b'/it\'s "so"',
    b"/$HOME/*",
    b"/\xff",
]


@pytest.mark.needs("systemd-escape")
@pytest.mark.parametrize("path", PATHS)
def test_the_name_of_a_unit_is_the_one_that_systemd_gives_it(path: bytes) -> None:
    said = subprocess.check_output(["systemd-escape", "--path", "--suffix=mount", path])
    assert mount_unit(path).encode() == said.rstrip(b"\n")


def test_a_name_that_is_too_long_for_a_unit() -> None:
    assert len(mount_unit(b"/" + b"a" * 249)) == 255
    with pytest.raises(UsageError, match="256 bytes") as raised:
        mount_unit(b"/" + b"a" * 250)
    assert "fstab" in (raised.value.hint or "")


def test_values() -> None:
    assert unit_value(b"a %h \\x b") == "a %%h \\x b"
    assert unit_word(b"/plain/%i") == "/plain/%%i"
    assert unit_word(b'/a b/\\c"') == '"/a b/\\\\c\\""'
    assert fstab_field(b"/a b\\c,d") == "/a\\040b\\134c,d"


@pytest.mark.parametrize("spell", [unit_value, unit_word, fstab_field])
@pytest.mark.parametrize("path", [b"/\xff", b"/a\nb", b"/a\x01"])
def test_what_neither_can_hold(spell: object, path: bytes) -> None:
    assert callable(spell)
    with pytest.raises(UsageError, match="UTF-8") as raised:
        spell(path)
    assert raised.value.message.isprintable()
    assert "--format commands" in (raised.value.hint or "")


@pytest.mark.parametrize("value", [b"/a ", b" /a", b"/a\\"])
def test_what_a_unit_would_read_otherwise(value: bytes) -> None:
    with pytest.raises(UsageError, match="blank"):
        unit_value(value)
