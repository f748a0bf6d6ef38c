"""What policy demands of one promotion, as the plain values that a backend understands (pure)."""

from collections.abc import Callable

from promoterd.backends.base import DirectoryTerms, Terms
from promoterd.policy import MountPolicy, Rule

NANOSECONDS = 1_000_000_000


RESTLESS = "it changed too often, so it counts as growing until it is promoted by hand"


def terms_for(policy: MountPolicy, path: bytes, now_ns: int, is_restless: Callable[[bytes], bool]) -> Terms:
    """The terms of promoting ``path``: limits from its own rule, and each directory of the closure under its own.

    ``is_restless``: whether a directory counts as growing because it kept changing (R7).
    """
    rule = policy.rule_for(path)

    def of(directory: bytes) -> DirectoryTerms:
        governing = policy.rule_for(directory)
        forbidden = why_forbidden(governing) or (RESTLESS if is_restless(directory) else None)
        if governing is None or forbidden is not None:
            return DirectoryTerms(forbidden=forbidden)
        return DirectoryTerms(
            oldest_allowed_ns=now_ns - round(governing.min_age * NANOSECONDS),
            break_hardlinks=governing.hardlinks == "break",
            hide_unlisted=governing.unlisted == "hide",
            ignore_watchers=governing.watched == "ignore",
            chain=governing.chain,
            copy_xattrs=governing.xattrs == "copy",
            wants_data=None if policy.copy_data is None else policy.copy_data.wants,
        )

    return Terms(
        max_entries=rule.max_entries if rule is not None else 0,
        recursive=rule.recursive if rule is not None else False,
        of=of,
    )


def why_forbidden(rule: Rule | None) -> str | None:
    """Why a directory under this rule must never be complete; None where it may be."""
    if rule is None:
        return "no rule of the policy matches it"
    if rule.growing:
        return f"it is growing (rule {rule.path!r}): new entries appear there on the server"
    if rule.promote == "never":
        return f"rule {rule.path!r} says `promote: never`"
    return None
