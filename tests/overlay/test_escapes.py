import pytest

from promoterd.overlay.escapes import escape_option, split_lowerdir, unescape_octal, unescape_option


def test_octal_escapes_of_mountinfo() -> None:
    assert unescape_octal(rb"a\040b\011c\012d\134e\043f") == b"a b\tc\nd\\e#f"


@pytest.mark.parametrize("raw", [rb"\04", rb"\999", rb"\x41", b"\\"])
def test_what_is_no_octal_escape_stays(raw: bytes) -> None:
    assert unescape_octal(raw) == raw


@pytest.mark.parametrize(
    ("raw", "regular", "data"),
    [
        (b"/a", [b"/a"], []),
        (b"/a:/b:/c", [b"/a", b"/b", b"/c"], []),
        (b"/a:/b::/d1::/d2", [b"/a", b"/b"], [b"/d1", b"/d2"]),
        (rb"/a\134:b:/c", [b"/a:b", b"/c"], []),
        (rb"/c\134\054d:/e\134\134f:/g\040h:/n\012l", [b"/c,d", b"/e\\f", b"/g h", b"/n\nl"], []),
        (rb"/ends\134\134:/next", [b"/ends\\", b"/next"], []),
        (rb"/plain\072colon:/b", [b"/plain:colon", b"/b"], []),
        (rb"/escaped\134\072colon:/b", [b"/escaped:colon", b"/b"], []),
        (rb"/a\134::/b", [b"/a:", b"/b"], []),
        (rb"/a::/d\134:x", [b"/a"], [b"/d:x"]),
        (b"/\xff\xfe:/\xc3\xbc", [b"/\xff\xfe", b"/\xc3\xbc"], []),
        (b"relative:.", [b"relative", b"."], []),
        (b"", [], []),
    ],
)
def test_lowerdir_as_mountinfo_shows_it(raw: bytes, regular: list[bytes], data: list[bytes]) -> None:
    assert split_lowerdir(raw) == (tuple(regular), tuple(data))


@pytest.mark.parametrize("path", [b"/a:b", b"/c,d", b"/e\\f", b"/\\:,", b"/plain", b"/n\nl", b"/trail\\"])
def test_an_escaped_path_is_read_back(path: bytes) -> None:
    assert unescape_option(escape_option(path)) == path
    shown = escape_option(path).replace(b"\\", rb"\134").replace(b",", rb"\054").replace(b"\n", rb"\012")
    assert split_lowerdir(shown + b":/other") == ((path, b"/other"), ())
