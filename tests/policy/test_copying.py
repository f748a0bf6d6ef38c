import pytest

from promoterd.errors import PolicyError
from promoterd.policy import CopyData
from promoterd.policy.load import parse_policy


def problem(copy_data: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_policy(f"mounts: [{{mountpoint: /x, copy_data: {copy_data}, rules: [{{path: a/**}}]}}]")
    return str(caught.value)


def test_a_file_is_wanted_by_its_size_and_any_of_the_globs() -> None:
    copies = CopyData(max_size=100, patterns=["**/*.py", "etc/**"])
    for path, size in ((b"a.py", 100), (b"apps/v1/lib/a.py", 0), (b"etc/any/thing", 1), (b"apps/\xff.py", 1)):
        assert copies.wants(path, size), path
    for path, size in ((b"a.py", 101), (b"a.so", 1), (b"etc", 1), (b"not/etc/thing", 1), (b"a.py/x", 1)):
        assert not copies.wants(path, size), path


def test_without_globs_every_small_file_is_wanted() -> None:
    assert CopyData().wants(b"at-the-root", 64 * 1024)
    assert CopyData().wants(b"apps/.hidden\n", 0)
    assert not CopyData().wants(b"apps/large", 64 * 1024 + 1)


@pytest.mark.parametrize(
    ("copy_data", "key", "words"),
    [
        ("{max_size: 1XB}", "max_size", "a size such as"),
        ("{max_size: 0}", "max_size", "at least 1"),
        ("{budget: -1}", "budget", "a size such as"),
        ("{patterns: []}", "patterns", "a list of globs"),
        ("{patterns: ['../x']}", "patterns[0]", "a glob relative to the mount"),
        ("{patterns: '**/*.py'}", "patterns", "a list of globs"),
        ("{pattern: ['**']}", "pattern", "did you mean patterns?"),
        ("yes", "", "the keys max_size, patterns, budget"),
    ],
)
def test_mistakes_have_their_way_out(copy_data: str, key: str, words: str) -> None:
    said = problem(copy_data)
    assert f"mounts[0].copy_data{'.' if key else ''}{key}" in said
    assert words in said
