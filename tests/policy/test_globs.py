import itertools
import random
import re
from fnmatch import fnmatchcase

import pytest

from promoterd.policy.globs import Glob, compiled_glob, decoded, levels, normalise
from promoterd.units import InvalidValueError


def matches(text: str, path: bytes) -> bool:
    return Glob(normalise(text)).matches(decoded(path))


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("apps", [b"apps"], [b"", b"apps/nuke", b"xapps", b"Apps", b"apps\n"]),
        ("apps/*", [b"apps/nuke", b"apps/.hidden", b"apps/..."], [b"apps", b"apps/nuke/15.1"]),
        ("apps/**", [b"apps/nuke", b"apps/nuke/15.1/lib", b"apps/.x/.y"], [b"apps", b"", b"apps2/x"]),
        ("apps/*/**", [b"apps/nuke/15.1", b"apps/nuke/15.1/lib"], [b"apps", b"apps/nuke"]),
        ("**/lib", [b"lib", b"apps/nuke/15.1/lib"], [b"", b"lib/python", b"xlib", b"a/xlib"]),
        ("apps/**/lib", [b"apps/lib", b"apps/nuke/15.1/lib"], [b"lib", b"appslib", b"apps/xlib", b"apps/lib/x"]),
        ("**/lib/**", [b"lib/a", b"x/lib/a/b"], [b"lib", b"x/lib", b"xlib/a"]),
        ("lib6?", [b"lib64", b"lib6\n", "lib6é".encode(), b"lib6\xff"], [b"lib6", b"lib640", b"lib6/"]),
        ("[a-c]*", [b"blender"], [b"nuke", b""]),
        ("[!.]*", [b"apps"], [b".apps", b"a/b"]),
        ("[é]x", ["éx".encode()], [b"ex", b"\xc3x"]),
        ("**", [b"a", b".a", b"a/b/c", b"a\nb"], [b""]),
        ("/", [b""], [b"a"]),
        ("a**b", [b"ab", b"axb"], [b"a/b", b"ax/xb"]),
        (r"a\*b", [b"a*b"], [b"axb"]),
        (r"\!x", [b"!x"], [b"x"]),
        ("!x", [b"!x"], [b"x"]),
        ("{a,b}", [b"{a,b}"], [b"a", b"b"]),
        ("~", [b"~"], []),
        ("a|b", [b"a|b"], [b"a", b"b"]),
        ("@(a|b)", [b"@(a|b)"], [b"a"]),
        ("caf\udce9", [b"caf\xe9"], ["café".encode()]),
        ("name with\nnewline", [b"name with\nnewline"], [b"name with"]),
        ("a/*/b", [b"a/\n/b", b"a/\xff\xfe/b"], [b"a/b", b"a/x/y/b"]),
        ("**/**/x", [b"x", b"a/b/x"], [b"xx"]),
    ],
)
def test_what_globs_match(text: str, yes: list[bytes], no: list[bytes]) -> None:
    assert [path for path in yes if not matches(text, path)] == []
    assert [path for path in no if matches(text, path)] == []


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("/apps/", "apps"),
        ("//apps//nuke", "apps/nuke"),
        ("./apps/./x", "apps/x"),
        ("/", "/"),
        (".", "/"),
        ("//", "/"),
        ("a/**/**/**/b", "a/**/b"),
        ("**/", "**"),
        (" a ", " a "),
        (".../x", ".../x"),
    ],
)
def test_slashes_and_dots_that_mean_nothing(text: str, plain: str) -> None:
    assert normalise(text) == plain
    assert normalise(plain) == plain


@pytest.mark.parametrize(
    "text",
    ["", "..", "../x", "a/../b", "a\0b", "a\\", "a\\/b", "a/\\\\\\/b", "\ud800", "[z-a]x" * 2000, "/".join("a" * 300)],
)
def test_what_is_no_glob(text: str) -> None:
    with pytest.raises(InvalidValueError):
        normalise(text)


def test_levels_of_the_root() -> None:
    assert levels("/") == []
    assert levels("a/**") == ["a", "**"]


def test_a_glob_is_compiled_once() -> None:
    assert compiled_glob("a/*", whole_trees=False) is compiled_glob("a/*", whole_trees=False)
    assert compiled_glob("a/*", whole_trees=True) is not compiled_glob("a/*", whole_trees=False)


# An independent reading of the same words, component by component.
def expected(parts: list[str], names: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        if len(parts) == 1:
            return bool(names)
        return any(expected(parts[1:], names[skip:]) for skip in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and expected(parts[1:], names[1:])


NAMES = ("a", "b", ".a", "a\n", "\udce9", "ab")
PATHS = [path for depth in range(4) for path in itertools.product(NAMES, repeat=depth)]
PARTS = ("a", "b", "*", "**", "?", ".*", "a*", "[ab]", "[!a]", "*\n", "\udce9")


def random_globs(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [normalise("/".join(chance.choices(PARTS, k=chance.randrange(1, 5)))) for _ in range(count)]


@pytest.mark.parametrize("text", random_globs(60, seed=1))
def test_matching_agrees_with_a_plain_reading(text: str) -> None:
    glob = Glob(text)
    wrong = [path for path in PATHS if glob.matches("/".join(path)) != expected(levels(text), list(path))]
    assert wrong == []


@pytest.mark.parametrize("text", [*random_globs(40, seed=2), "/"])
@pytest.mark.parametrize("whole_trees", [False, True])
def test_whole_trees_reaching_and_covering(text: str, whole_trees: bool) -> None:
    """Against all paths of three levels: what is reached and covered below a path of one level or none."""
    glob, plain = Glob(text, whole_trees=whole_trees), Glob(text)
    hits = {path for path in PATHS if glob.matches("/".join(path))}
    if whole_trees:
        itself = [path for path in PATHS if plain.matches("/".join(path))]
        assert hits == {path for path in PATHS if any(path[: len(top)] == top for top in itself)}
    for path in PATHS:
        below = [other for other in PATHS if other[: len(path)] == path and len(other) > len(path)]
        inside = [other for other in [path, *below] if other in hits]
        if inside:
            assert glob.can_reach("/".join(path))
        if glob.covers_below("/".join(path)):
            assert all(other in hits for other in below)


@pytest.mark.parametrize(
    ("text", "reached", "not_reached"),
    [
        ("a/b/c", ["", "a", "a/b", "a/b/c"], ["b", "a/c", "a/b/c/d"]),
        ("a/*/c", ["", "a", "a/x", "a/x/c"], ["a/x/y", "b"]),
        ("a/**", ["", "a", "a/b", "a/b/c"], ["b", "ab"]),
        ("**/lib", ["", "a", "a/b/c", "lib/x"], []),
        ("a/**/lib", ["", "a", "a/b/c/d"], ["b", "lib"]),
        ("/", [""], ["a"]),
    ],
)
def test_reaching_is_exact_for_one_glob(text: str, reached: list[str], not_reached: list[str]) -> None:
    glob = Glob(text)
    assert [path for path in reached if not glob.can_reach(path)] == []
    assert [path for path in not_reached if glob.can_reach(path)] == []


@pytest.mark.parametrize(
    ("text", "whole_trees", "covered", "not_covered"),
    [
        ("a/**", False, ["a", "a/b"], ["", "b"]),
        ("**", False, ["", "a"], []),
        ("**/x/**", False, ["x", "a/x", "a/x/y"], ["", "a"]),
        ("a/*", False, [], ["", "a", "a/b"]),
        ("a/*", True, ["a/b", "a/b/c"], ["", "a"]),
        ("/", True, ["", "a"], []),
        ("/", False, [], ["", "a"]),
    ],
)
def test_covering(text: str, whole_trees: bool, covered: list[str], not_covered: list[str]) -> None:
    glob = Glob(text, whole_trees=whole_trees)
    assert [path for path in covered if not glob.covers_below(path)] == []
    assert [path for path in not_covered if glob.covers_below(path)] == []


def test_random_text_is_a_glob_or_refused_and_never_warns() -> None:
    """Warnings are errors here: what wcmatch makes of odd brackets must not trouble the regular expression compiler."""
    chance = random.Random(3)
    pieces = [*"[]!-^ab*?\\/&|~:.(){$+@,\n", "**", "[:alpha:]", "é", "\udcff"]
    refused = 0
    for _ in range(3000):
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 10)))
        try:
            plain = normalise(text)
        except InvalidValueError:
            refused += 1
            continue
        assert normalise(plain) == plain
        for whole_trees in (False, True):
            glob = Glob(plain, whole_trees=whole_trees)
            for path in ("", "a", "a/b", "a\nb", "\udcff"):
                assert isinstance(glob.matches(path) + glob.can_reach(path) + glob.covers_below(path), int)
    assert 0 < refused < 1500


def test_literal_text_matches_itself() -> None:
    chance = random.Random(4)
    for _ in range(500):
        name = "".join(chance.choices("abc[]{}()!^$+|.*?\\ \n\té\udce9-~@#%&", k=chance.randrange(1, 8)))
        if name in (".", ".."):
            continue
        text = normalise(re.sub(r"([*?\[\]\\])", r"\\\1", name))
        assert Glob(text).matches(name), name
