"""What a policy may say, but hardly means."""

import re
from collections.abc import Iterator
from typing import Final

from promoterd.policy.globs import levels
from promoterd.policy.models import MountPolicy, Policy, Rule
from promoterd.policy.problems import Location
from promoterd.units import shown

_WITHOUT_DATA: Final = frozenset({"opaque", "finalize", "prime", "observe"})


def doubts(policy: Policy) -> Iterator[tuple[Location, str]]:
    """Where, and what is doubtful about it."""
    for at, mount in enumerate(policy.mounts):
        where: Location = ("mounts", at)
        if not any(rule.may_promote for rule in mount.rules):
            yield (*where, "rules"), "no rule lets anything be promoted"
        if mount.copy_data is not None and mount.backend in _WITHOUT_DATA:
            yield (*where, "copy_data"), f"the backend {mount.backend} copies no data, only `layer` does"
        for number, rule in enumerate(mount.rules):
            for text in _of_rule(mount, number, rule):
                yield (*where, "rules", number, "path"), text


def _of_rule(mount: MountPolicy, number: int, rule: Rule) -> Iterator[str]:
    earlier = next((at for at, other in enumerate(mount.rules[:number]) if _hides(other, rule)), None)
    if earlier is not None:
        yield f"{shown(rule.path)} never matches, rules[{earlier}] ({shown(mount.rules[earlier].path)}) comes first"
    if rule.may_promote and rule.recursive and levels(rule.path)[-1:] != ["**"] and not _has_rules_inside(mount, rule):
        better = f"{rule.path}/**".lstrip("/")
        yield f"no rule matches the directories inside, so it is refused if it has any; add a rule for {shown(better)}"
    inside = mount.mountpoint.strip("/")
    if inside and (rule.path == inside or rule.path.startswith(inside + "/")):
        better = rule.path[len(inside) + 1 :] or "/"
        yield f"paths are relative to the mount; did you mean {shown(better)}?"
    if re.search(r"(?<!\\)\{[^}]*,[^}]*\}", rule.path):
        yield "braces are ordinary characters; write one rule for each alternative"
    if rule.path.startswith("!"):
        yield "'!' is an ordinary character; to leave something out, put a rule with promote: never before"
    if re.search(r"[^/]\*\*|\*\*[^/]", rule.path):
        yield "'**' means any number of directories only between slashes; here it is the same as '*'"


def _has_rules_inside(mount: MountPolicy, rule: Rule) -> bool:
    """Whether some rule governs directories directly inside: any rule, as it may be meant to forbid them."""
    here = levels(rule.path)
    child = "/".join([*here, "any"])
    return any(other.glob.matches(child) or levels(other.path)[:-1] == here for other in mount.rules if other != rule)


def _hides(earlier: Rule, later: Rule) -> bool:
    """Whether all that ``later`` matches is surely matched by ``earlier``: only the plain cases, no false alarms."""
    ours, theirs = levels(earlier.path), levels(later.path)
    if ours[-1:] == ["**"]:
        return theirs[: len(ours) - 1] == ours[:-1] and len(theirs) >= len(ours)
    whole_tree = earlier.promote == "never"
    return theirs[: len(ours)] == ours if whole_tree else theirs == ours
