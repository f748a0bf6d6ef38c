"""``warm:`` in a policy."""

import pytest

from promoterd.errors import PolicyError
from promoterd.policy import WarmPolicy, dump_policy
from promoterd.policy.load import parse_policy


def parsed(warm: str) -> WarmPolicy | None:
    return parse_policy(f"mounts: [{{mountpoint: /x, warm: {warm}, rules: [{{path: a/**}}]}}]").mounts[0].warm


@pytest.mark.parametrize(
    "written", ["/a//b.yaml", "[/a/b.yaml]", "{lists: [/a/b.yaml]}", "{lists: [/a/b.yaml], min_count: 0}"]
)
def test_lists_alone_will_do(written: str) -> None:
    assert parsed(written) == WarmPolicy(lists=["/a/b.yaml"])


def test_nothing_is_nothing() -> None:
    assert parsed("") is None


def test_what_is_written_is_read_back() -> None:
    policy = parse_policy("mounts: [{mountpoint: /x, warm: ['/w/*.yaml', /v], rules: [{path: a/**}]}]")
    assert parse_policy(dump_policy(policy)).mounts[0].warm == policy.mounts[0].warm


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a.yaml", "found 'a.yaml'; allowed absolute paths of heat lists, directories of them, or globs"),
        ("[/a, b.yaml]", "did you mean /b.yaml?"),
        ("[]", "mounts[0].warm"),
        ("{lists: [/a], min_count: many}", "mounts[0].warm.min_count: found 'many'; allowed a whole number"),
        ("{list: [/a]}", "did you mean lists?"),
        ("{min_count: 3}", "mounts[0].warm.lists: found nothing; allowed a list of absolute paths"),
    ],
)
def test_mistakes_have_their_way_out(written: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parsed(written)
    assert said in caught.value.message
