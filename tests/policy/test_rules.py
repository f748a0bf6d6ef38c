import itertools
import random
import time
from typing import Any

import pytest
from pydantic import ValidationError

from promoterd.policy import MountPolicy, Policy, Rule
from promoterd.units import Amount, Share


def mount(*rules: dict[str, Any] | str, **keys: Any) -> MountPolicy:
    written = [{"path": rule} if isinstance(rule, str) else rule for rule in rules]
    return MountPolicy.model_validate({"mountpoint": "/srv/view", "rules": written, **keys})


def never(path: str) -> dict[str, Any]:
    return {"path": path, "promote": "never"}


def growing(path: str) -> dict[str, Any]:
    return {"path": path, "growing": True}


def test_the_first_rule_that_matches_governs() -> None:
    policy = mount({"path": "apps/*/lib", "threshold": 3}, "apps/**", "**")
    assert policy.rule_index_for(b"apps/nuke/lib") == 0
    assert policy.rule_index_for(b"apps/nuke/plugins") == 1
    assert policy.rule_index_for(b"apps") == 2
    assert policy.rule_for(b"apps/nuke/lib") is policy.rules[0]


def test_what_no_rule_matches_is_not_promoted() -> None:
    policy = mount("apps/**")
    assert policy.rule_for(b"lib") is None
    assert policy.rule_for(b"") is None
    assert not policy.may_promote(b"lib")
    assert not policy.is_growing(b"lib")


def test_the_root_has_a_rule_of_its_own() -> None:
    assert mount("/").rule_index_for(b"") == 0
    assert mount("/").rule_for(b"apps") is None
    assert mount("**").rule_for(b"") is None


@pytest.mark.parametrize("name", [b"a\nb", b"caf\xe9", b"\xff\xfe", b" ", b".x", b"...", b"*", b"[", "é".encode()])
def test_odd_names_have_rules_too(name: bytes) -> None:
    policy = mount(growing("apps/*"), "apps/*/**", never("**"))
    assert policy.rule_index_for(b"apps/" + name) == 0
    assert policy.rule_index_for(b"apps/x/" + name) == 1
    assert policy.rule_index_for(name) == 2


def test_the_scratch_directory_is_never_governed() -> None:
    policy = mount("**", scratch=".work")
    assert policy.rule_for(b".work") is None
    assert policy.rule_for(b".work/a/b") is None
    assert not policy.may_promote_below(b".work")
    assert policy.rule_for(b".work2") is not None
    assert policy.rule_for(b"apps/.work") is not None


# Invariant I3: a growing directory is never complete, nor is one that an ancestor's rule forbids.
def test_a_forbidden_directory_forbids_what_is_below_it() -> None:
    policy = mount(never("apps/licensing"), "apps/**")
    assert not policy.may_promote(b"apps/licensing")
    assert not policy.may_promote(b"apps/licensing/lib/x")
    assert policy.may_promote(b"apps/licensing2")
    assert policy.rule_index_for(b"apps/licensing/lib/x") == 0
    assert not policy.may_promote_below(b"apps/licensing")


def test_an_exception_to_a_forbidden_tree_comes_before_it() -> None:
    policy = mount("apps/licensing/public/**", never("apps/licensing"), "apps/**")
    assert policy.may_promote(b"apps/licensing/public/lib")
    assert not policy.may_promote(b"apps/licensing/private/lib")
    assert policy.may_promote_below(b"apps/licensing")
    assert not policy.may_promote_below(b"apps/licensing/private")


def test_the_whole_mount_can_be_forbidden() -> None:
    policy = mount(never("/"), "**")
    assert not policy.may_promote(b"")
    assert not policy.may_promote(b"apps")
    assert not policy.may_promote_below(b"")


def test_a_growing_directory_is_never_promoted_but_what_is_in_it_may_be() -> None:
    policy = mount(growing("apps"), growing("apps/*"), "apps/**")
    for path in (b"apps", b"apps/nuke"):
        assert policy.is_growing(path)
        assert not policy.may_promote(path)
        assert policy.may_promote_below(path)
    assert policy.may_promote(b"apps/nuke/15.1")
    assert not policy.is_growing(b"apps/nuke/15.1")


def test_everything_growing_below_ends_a_walk() -> None:
    policy = mount(growing("shots/**"), "**")
    assert policy.may_promote_below(b"shots")  # the directory itself is governed by the last rule
    assert not policy.may_promote_below(b"shots/one")


def test_growing_and_always_contradict() -> None:
    with pytest.raises(ValidationError, match="never completed"):
        mount({"path": "apps", "growing": True, "promote": "always"})


def test_thresholds() -> None:
    policy = mount({"path": "a", "threshold": 3}, "b", heat={"threshold": 7})
    assert [policy.threshold_for(rule) for rule in policy.rules] == [3.0, 7.0]


NAMES = ("a", "b", "c\n", "\udce9")
PATHS = [
    "/".join(path).encode("utf-8", "surrogateescape") for n in range(5) for path in itertools.product(NAMES, repeat=n)
]


def random_mounts(count: int) -> list[MountPolicy]:
    chance = random.Random(5)
    made = []
    for _ in range(count):
        rules = []
        for _ in range(chance.randrange(1, 5)):
            path = "/".join(chance.choices(["a", "b", "*", "**", "?", "[!a]*"], k=chance.randrange(1, 4)))
            rules.append(chance.choice([{"path": path}, never(path), growing(path)]))
        made.append(mount(*rules))
    return made


@pytest.mark.parametrize("policy", random_mounts(40), ids=lambda policy: ",".join(rule.path for rule in policy.rules))
def test_a_walk_that_is_cut_short_misses_nothing(policy: MountPolicy) -> None:
    allowed = {path for path in PATHS if policy.may_promote(path)}
    for path in PATHS:
        if not policy.may_promote_below(path):
            prefix = path + b"/" if path else b""
            assert [other for other in allowed if other == path or other.startswith(prefix)] == []


@pytest.mark.parametrize("policy", random_mounts(40), ids=lambda policy: ",".join(rule.path for rule in policy.rules))
def test_nothing_is_promoted_below_a_directory_that_an_earlier_rule_forbids(policy: MountPolicy) -> None:
    for path in PATHS:
        index = policy.rule_index_for(path)
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            above = policy.rule_index_for(b"/".join(parts[:depth]))
            if above is not None and index is not None and policy.rules[above].promote == "never":
                assert index <= above


def test_a_hundred_thousand_questions() -> None:
    policy = mount(never("tmp"), growing("apps/*"), "apps/*/*/**", "**/site-packages", "lib/**")
    paths = [b"apps/houdini/19.%d/python/lib/site-packages/pkg%d" % (number % 10, number) for number in range(100_000)]
    started = time.process_time()
    assert all(policy.may_promote(path) for path in paths)
    assert time.process_time() - started < 10  # 1 s on a slow machine; minutes if globs were compiled each time


def test_models_are_frozen_and_copies_match_anew() -> None:
    rule = Rule(path="a")
    with pytest.raises(ValidationError):
        rule.path = "b"
    policy = mount("a")
    assert policy.may_promote(b"a")
    changed = policy.model_copy(update={"rules": [rule.model_copy(update={"path": "b"})]})
    assert changed.may_promote(b"b")
    assert not changed.may_promote(b"a")


def test_defaults_are_the_cautious_ones() -> None:
    policy = mount("a")
    rule = policy.rules[0]
    assert (rule.promote, rule.growing, rule.threshold, rule.recursive) == ("hot", False, None, True)
    assert (rule.max_entries, rule.min_age, rule.recheck) == (200_000, 3600.0, 600.0)
    assert (rule.writers, rule.unlisted, rule.hardlinks, rule.watched) == ("any", "refuse", "refuse", "refuse")
    assert (policy.backend, policy.activation_interval, policy.quiet_period) == ("auto", 60.0, 30.0)
    assert (policy.scratch, policy.scratch_bytes) == (".promoterd", b".promoterd")
    assert (policy.heat.source, policy.heat.half_life, policy.heat.threshold) == ("auto", 600.0, 4.0)
    assert (policy.heat.max_directories, policy.heat.max_watches) == (100_000, Share(0.5))
    assert (policy.limits.entries_per_second, policy.limits.concurrency) == (5000, 2)
    assert (policy.limits.min_free_space, policy.limits.min_free_inodes) == (Share(0.05), Share(0.05))
    assert policy.limits.stuck_after == 30.0
    assert Policy(mounts=[policy]).metrics.address == ("127.0.0.1", 9909)


@pytest.mark.parametrize("written", ["0", "unlimited", None, 0])
def test_no_limit(written: object) -> None:
    assert mount("a", limits={"entries_per_second": written}).limits.entries_per_second is None


def test_amounts_instead_of_shares() -> None:
    limits = mount("a", limits={"min_free_space": "10GiB", "min_free_inodes": "1000"}).limits
    assert limits.min_free_space == Amount(10 * 2**30)
    assert limits.min_free_inodes == Amount(1000)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9909", ("127.0.0.1", 9909)),
        ("[::1]:0", ("::1", 0)),
        ("metrics.farm-1.example:65535", ("metrics.farm-1.example", 65_535)),
        ("off", None),
        (None, None),
        (False, None),
    ],
)
def test_where_metrics_are(listen: object, address: tuple[str, int] | None) -> None:
    policy = Policy.model_validate({"metrics": {"listen": listen}, "mounts": [mount("a")]})
    assert policy.metrics.address == address


def test_mount_points_as_the_kernel_spells_them() -> None:
    policy = Policy(mounts=[mount("a", mountpoint="//srv/./caf\udce9//")])
    assert policy.mounts[0].mountpoint == "/srv/caf\udce9"
    assert policy.mounts[0].mountpoint_bytes == b"/srv/caf\xe9"


def test_one_mount_point_twice_is_refused_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match="a second time"):
        Policy(mounts=[mount("a"), mount("b")])
