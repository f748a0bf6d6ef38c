from typing import Any

import pytest

from promoterd.backends.base import DirectoryTerms
from promoterd.policy import MountPolicy, Rule
from promoterd.terms import NANOSECONDS, RESTLESS, terms_for, why_forbidden

NOW_NS = 5_000 * NANOSECONDS


def policy(*rules: dict[str, Any]) -> MountPolicy:
    return MountPolicy.model_validate({"mountpoint": "/mnt", "rules": rules})


def nobody(_path: bytes) -> bool:
    return False


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (None, "no rule of the policy matches it"),
        ({"path": "apps", "growing": True}, "it is growing (rule 'apps'): new entries appear there on the server"),
        ({"path": "dev/**", "promote": "never"}, "rule 'dev/**' says `promote: never`"),
        ({"path": "lib"}, None),
        ({"path": "lib", "promote": "always"}, None),
    ],
)
def test_why_forbidden(rule: dict[str, Any] | None, said: str | None) -> None:
    assert why_forbidden(None if rule is None else Rule.model_validate(rule)) == said


def test_limits_come_from_the_rule_of_the_directory_itself() -> None:
    governed = policy({"path": "a/b", "max_entries": 7}, {"path": "a", "recursive": False, "max_entries": 9})
    terms = terms_for(governed, b"a", NOW_NS, nobody)
    assert (terms.max_entries, terms.recursive) == (9, False)
    terms = terms_for(governed, b"a/b", NOW_NS, nobody)
    assert (terms.max_entries, terms.recursive) == (7, True)


def test_each_directory_of_the_closure_stands_under_its_own_rule() -> None:
    governed = policy(
        {"path": "a/links", "hardlinks": "break", "min_age": "10s"},
        {"path": "a/snaps", "unlisted": "hide", "min_age": "0s"},
        {"path": "a/seen", "watched": "ignore", "min_age": "1h"},
        {"path": "a", "min_age": "20s"},
    )
    of = terms_for(governed, b"a", NOW_NS, nobody).of
    assert of(b"a") == DirectoryTerms(oldest_allowed_ns=NOW_NS - 20 * NANOSECONDS)
    assert of(b"a/links") == DirectoryTerms(oldest_allowed_ns=NOW_NS - 10 * NANOSECONDS, break_hardlinks=True)
    assert of(b"a/snaps") == DirectoryTerms(oldest_allowed_ns=NOW_NS, hide_unlisted=True)
    assert of(b"a/seen") == DirectoryTerms(oldest_allowed_ns=NOW_NS - 3600 * NANOSECONDS, ignore_watchers=True)
    assert of(b"a/else").forbidden == "no rule of the policy matches it"


def test_what_an_ancestors_rule_forbids_is_forbidden() -> None:
    """I3."""
    of = terms_for(policy({"path": "dev", "promote": "never"}, {"path": "**"}), b"x", NOW_NS, nobody).of
    assert of(b"dev/deep/inside").forbidden == "rule 'dev' says `promote: never`"
    assert of(b"x").forbidden is None


def test_what_keeps_changing_counts_as_growing() -> None:
    """R7."""
    of = terms_for(policy({"path": "**"}), b"a", NOW_NS, lambda path: path == b"a/b").of
    assert of(b"a/b").forbidden == RESTLESS
    assert of(b"a").forbidden is None


def test_without_a_rule_nothing_may_be_done() -> None:
    terms = terms_for(policy({"path": "a"}), b"b", NOW_NS, nobody)
    assert (terms.max_entries, terms.recursive) == (0, False)
    assert terms.of(b"b").forbidden
