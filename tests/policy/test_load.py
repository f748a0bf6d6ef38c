import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from promoterd.errors import PolicyError
from promoterd.policy import CopyData, dump_policy, effective_policy, load_policy
from promoterd.policy.load import parse_policy

BACKENDS = ("opaque", "finalize", "observe")
SOURCES = ("inotify",)

GOOD = """\
state_dir: /var/lib/promoterd
control:
  socket: /run/promoterd/control.sock
  group: farm
metrics:
  listen: 127.0.0.1:9909
log:
  format: json
  level: info
mounts:
  - mountpoint: /srv/view
    backend: opaque
    heat:
      source: inotify
      half_life: 10m
      threshold: 20
      max_watches: 50%
    limits:
      entries_per_second: 100
      min_free_space: 5%
    scratch: .promoterd
    rules:
      - path: apps
        promote: hot
        growing: false
        max_entries: 10
        min_age: 1h
      - path: lib/**
      - path: /apps/**
"""


MOUNT_KEYS = (
    "the keys mountpoint, backend, heat, expect, limits, maintenance, copy_data, warm, activation_interval, "
    "quiet_period, scratch, rules"
)
HEAT_KEYS = "the keys source, half_life, threshold, settle, payback, max_directories, max_watches"
RULE_KEYS = (
    "the keys path, promote, growing, threshold, recursive, max_entries, min_age, writers, "
    "unlisted, hardlinks, watched, chain, xattrs, recheck, verify"
)
FILE_KEYS = "the keys state_dir, control, metrics, log, limits, mounts"
DURATION = "a duration such as 500ms, 90s, 10m, 1h30m or 7d (a plain number means seconds)"
SHARE_OR_SIZE = "a share such as 5%, or a size such as 4096, 64KiB, 10GiB (powers of 1024) or 1GB (powers of 1000)"
GLOB = "a glob relative to the mount, such as apps/*/lib or **/site-packages; / alone is the mount's root"
COUNT = "a whole number, at least 1, at most 100000000"
QUOTES = 'quotes around a value that starts with one of * & ! [ { @ % or `, such as path: "**/lib"'
LISTEN = "an address and a port, such as 127.0.0.1:9909 or [::1]:9909, or off"


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml", known_backends=BACKENDS, known_heat_sources=SOURCES)
    assert caught.value.exit_code == 3
    assert str(caught.value) == caught.value.message
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.fields["problems"])  # type: ignore[arg-type]
    return lines


def changed(before: str, after: str) -> str:
    assert GOOD.count(before) == 1, before
    return GOOD.replace(before, after)


def test_a_good_policy() -> None:
    policy = parse_policy(GOOD, known_backends=BACKENDS, known_heat_sources=SOURCES)
    assert policy.control.group == "farm"
    assert policy.mounts[0].rules[0].min_age == 3600.0
    assert policy.mounts[0].rules[1].path == "lib/**"
    assert policy.warnings == ()


@pytest.mark.parametrize(
    ("before", "after", "place", "found", "allowed", "better"),
    [
        (
            "state_dir: /var",
            "state_dir: var",
            "1: state_dir",
            "'var/lib/promoterd'",
            "an absolute path without '..'",
            "/var/lib/promoterd",
        ),
        (
            "state_dir: /var/lib",
            "state_dir: /var/..",
            "1: state_dir",
            "'/var/../promoterd'",
            "an absolute path without '..'",
            None,
        ),
        ("control:", "contrl:", "2: contrl", "the unknown key 'contrl'", FILE_KEYS, "control"),
        (
            "/run/promoterd/control.sock",
            "/" + "x" * 107,
            "3: control.socket",
            "'/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'",
            "an absolute path of at most 107 bytes",
            None,
        ),
        ("group: farm", "group: ''", "4: control.group", "''", "a name, or nothing", None),
        ("listen: 127.0.0.1:9909", "listen: 9909", "6: metrics.listen", "'9909'", LISTEN, "127.0.0.1:9909"),
        ("format: json", "format: Json", "8: log.format", "'Json'", "auto, json or console", "json"),
        ("level: info", "level:", "9: log.level", "nothing", "debug, info, warning or error", None),
        (
            "- mountpoint: /srv/view",
            "- mount: /srv/view",
            "11: mounts[0].mount",
            "the unknown key 'mount'",
            MOUNT_KEYS,
            "mountpoint",
        ),
        (
            "backend: opaque",
            "backend: opaqe",
            "12: mounts[0].backend",
            "'opaqe'",
            "auto, finalize, observe or opaque",
            "opaque",
        ),
        (
            "source: inotify",
            "source: fanotify",
            "14: mounts[0].heat.source",
            "'fanotify'",
            "auto or inotify",
            "inotify",
        ),
        ("half_life: 10m", "half_life: 10min", "15: mounts[0].heat.half_life", "'10min'", DURATION, "10m"),
        (
            "half_life: 10m",
            "half-life: 10m",
            "15: mounts[0].heat.half-life",
            "the unknown key 'half-life'",
            HEAT_KEYS,
            "half_life",
        ),
        ("half_life: 10m", "half_life: 0s", "15: mounts[0].heat.half_life", "'0s'", DURATION + ", more than 0s", None),
        ("threshold: 20", "threshold: .inf", "16: mounts[0].heat.threshold", "'.inf'", "a number, more than 0", None),
        ("threshold: 20", "threshold: inf", "16: mounts[0].heat.threshold", "'inf'", "a number, more than 0", None),
        (
            "max_watches: 50%",
            "max_watches: 150%",
            "17: mounts[0].heat.max_watches",
            "'150%'",
            "a share from 0% to 100%",
            None,
        ),
        (
            "max_watches: 50%",
            "concurrency: 3",
            "17: mounts[0].heat.concurrency",
            "the unknown key 'concurrency'",
            HEAT_KEYS,
            "mounts[].limits.concurrency",
        ),
        (
            "_second: 100",
            "_second: fast",
            "19: mounts[0].limits.entries_per_second",
            "'fast'",
            "unlimited, or a whole number, at least 1, at most 10000000",
            None,
        ),
        ("_space: 5%", "_space: 5G", "20: mounts[0].limits.min_free_space", "'5G'", SHARE_OR_SIZE, "5GiB"),
        ("scratch: .promoterd", "scratch: a/b", "21: mounts[0].scratch", "'a/b'", "one name, without slashes", None),
        ("- path: apps", "- pth: apps", "23: mounts[0].rules[0].path", "nothing", GLOB, None),
        (
            "- path: apps",
            "- path: ../apps",
            "23: mounts[0].rules[0].path",
            "'../apps'",
            "no '..' and no NUL in " + GLOB,
            None,
        ),
        (
            "promote: hot",
            "promote: alwyas",
            "24: mounts[0].rules[0].promote",
            "'alwyas'",
            "hot, always or never",
            "always",
        ),
        ("growing: false", "growing: ture", "25: mounts[0].rules[0].growing", "'ture'", "true or false", "true"),
        ("max_entries: 10", "max_entries: 0", "26: mounts[0].rules[0].max_entries", "'0'", COUNT, None),
        ("max_entries: 10", "max_entries: 1.5", "26: mounts[0].rules[0].max_entries", "'1.5'", COUNT, None),
        ("max_entries: 10", "max_entries: [10]", "26: mounts[0].rules[0].max_entries", "a list", COUNT, None),
        (
            "min_age: 1h",
            "min_agee: 1h",
            "27: mounts[0].rules[0].min_agee",
            "the unknown key 'min_agee'",
            RULE_KEYS,
            "min_age",
        ),
        (
            "min_age: 1h",
            "path: lib",
            "27: mounts[0].rules[0].path",
            "the key 'path' a second time (first in line 23)",
            "each key once",
            None,
        ),
        ("min_age: 1h", "? [a]\n        : b", "27: mounts[0].rules[0]", "a key that is no word", "a plain word", None),
        ("min_age: 1h", "min_age: !hours 1", "27: mounts[0].rules[0].min_age", "the tag '!hours'", QUOTES, None),
        ("- path: lib/**", "- lib/**", "28: mounts[0].rules[1]", "'lib/**'", "a mapping with " + RULE_KEYS, None),
    ],
)
def test_each_mistake_has_its_line_and_its_way_out(
    before: str, after: str, place: str, found: str, allowed: str, better: str | None
) -> None:
    message = f"p.yaml:{place}: found {found}; allowed {allowed}"
    assert (f"{message}; did you mean {better}?" if better else message) in problems(changed(before, after))


@pytest.mark.parametrize(
    "listen",
    ["", ":9909", "localhost", "1.2.3:80", "::1:80", "[127.0.0.1]:80", "h:99999", "a b:1", "-x:1", "0x1", "[]:1"],
)
def test_where_metrics_cannot_be(listen: str) -> None:
    assert len(problems(changed("127.0.0.1:9909", f'"{listen}"'))) == 1


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = changed("format: json", "format: jsn").replace("backend: opaque", "backend: layer")
    text = text.replace("path: lib/**", "pth: lib/**").replace(
        "growing: false", "growing: true\n        promote: always"
    )
    found = problems(text + "  - mountpoint: /srv/view/\n    rules: []\n")
    assert [line.split(": found")[0] for line in found] == [
        "p.yaml:8: log.format",
        "p.yaml:12: mounts[0].backend",
        "p.yaml:26: mounts[0].rules[0].promote",
        "p.yaml:29: mounts[0].rules[1].path",
        "p.yaml:29: mounts[0].rules[1].pth",
        "p.yaml:31: mounts[1].mountpoint",
        "p.yaml:32: mounts[1].rules",
    ]
    assert found[5].endswith("found '/srv/view' a second time; allowed each mount point once")
    assert "found an empty list; allowed a list of one or more mappings" in found[6]


def test_growing_beside_always_is_a_contradiction() -> None:
    text = changed("promote: hot", "promote: always").replace("growing: false", "growing: yes")
    assert problems(text) == [
        (
            "p.yaml:25: mounts[0].rules[0].growing: found true beside promote: always; "
            "allowed promote: hot or never, as it is never completed"
        )
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "found nothing; allowed a mapping with the keys state_dir"),
        ("# only a comment\n", 1, "found nothing; allowed a mapping"),
        ("--- ~\n", 1, "found nothing; allowed a mapping"),
        ("mounts", 1, "found 'mounts'; allowed a mapping"),
        ("[]", 1, "found an empty list; allowed a mapping"),
        ("mounts:\n\t- x\n", 2, "found a tab; allowed spaces"),
        ("a: b\nmounts: x: y\n", 2, "quotes around a value with a colon"),
        ("mounts:\n  - a\n b\n", 3, "found no valid YAML"),
        ("mounts: [\n\n", 3, "found no valid YAML"),
        ("a: 'open\n", 2, "found no valid YAML"),
        ("a: b\n---\nc: d\n", 2, "found no valid YAML (expected a single document"),
        ("\n\n- path: **/lib\n", 3, 'did you mean path: "**/lib"?'),
        ("- path: *.so # all\n", 1, 'did you mean path: "*.so"?'),
        ("path: [0-9]*\n", 1, 'did you mean path: "[0-9]*"?'),
        ("path: *apps\n", 1, 'did you mean path: "*apps"?'),
        ("path: @x\n", 1, 'did you mean path: "@x"?'),
        ("x:\n  y: \x07\n", 2, "found the character U+0007"),
        ('x: "\\UFFFFFFFF"', 1, "found an escape that stands for no character"),
        ("a: &a [*a]\nmounts: 1", 1, "a[0]: found an alias inside of what it stands for"),
        ("a:\n  <<: &b {<<: *b}\nmounts: 1", 2, "found an alias inside of what it stands for"),
        ("a:\n  <<: 5\n", 2, "a.'<<': found '5'; allowed an alias of a mapping"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            1,
            "found the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ('a: b\n"\\udce9": 1\n', 2, r"found the key '\udce9'; allowed a plain word"),
        ('a: b\n"x\\ny": 1\n', 2, r"found the key 'x\ny'; allowed a plain word"),
        ("[" * 5000, 1, "found values nested too deeply"),
        ("- " * 5000, 1, "found values nested too deeply"),
    ],
)
def test_text_that_is_no_policy(text: str, line: int, words: str) -> None:
    found = problems(text)
    assert [problem for problem in found if problem.startswith(f"p.yaml:{line}: ") and words in problem], found


def test_aliases_that_nest_deeply_are_unknown_keys_like_any_other() -> None:
    chain = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else ''}]" for n in range(4000))
    assert len(problems(chain)) == 4001


def test_aliases_that_multiply_cost_nothing() -> None:
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'ha'}]" for n in range(60))
    assert len(problems(laughs)) == 61


def test_aliases_and_merge_keys_share_rules_between_mounts() -> None:
    policy = parse_policy("""\
mounts:
  - &one
    mountpoint: /one
    heat: {threshold: 3}
    rules: &rules
      - path: /apps/**
  - <<: *one
    mountpoint: /two
  - mountpoint: /three
    <<: [{backend: observe}, {backend: opaque, scratch: .s}]
    rules: *rules
""")
    one, two, three = policy.mounts
    assert two.rules == one.rules == three.rules
    assert (two.mountpoint, two.heat.threshold) == ("/two", 3.0)
    assert (three.backend, three.scratch) == ("observe", ".s")


def test_a_mistake_in_a_merged_mapping_is_found_where_it_stands() -> None:
    text = (
        "mounts:\n- &one\n  mountpoint: /one\n  backend: opqaue\n  rules: [{path: a}]\n- <<: *one\n  mountpoint: /two\n"
    )
    assert [line.partition(" found")[0] for line in problems(text)] == [
        "p.yaml:4: mounts[0].backend:",
        "p.yaml:4: mounts[1].backend:",
    ]


def test_values_mean_what_they_look_like() -> None:
    """YAML 1.1 would read a date, a number, a boolean and a number to the base of sixty here."""
    rules = "[{path: 2024-01-01}, {path: 2024.10}, {path: on, growing: yes}, {path: 12:30:45}, {path: =}, {path: 010}]"
    policy = parse_policy(f"metrics: {{listen: off}}\nmounts: [{{mountpoint: /x, rules: {rules}}}]")
    assert [rule.path for rule in policy.mounts[0].rules] == ["2024-01-01", "2024.10", "on", "12:30:45", "=", "010"]
    assert policy.mounts[0].rules[2].growing
    assert policy.metrics.listen is None


def test_sections_whose_keys_are_all_commented_out_are_defaults() -> None:
    text = "control:\nmetrics: ~\nlog:\nmounts:\n- mountpoint: /x\n  heat:\n  limits:\n  rules:\n  - path: a/**\n"
    assert parse_policy(text) == parse_policy("mounts: [{mountpoint: /x, rules: [{path: a/**}]}]")


def test_copying_is_on_only_where_something_is_said_of_it() -> None:
    text = "mounts: [{{mountpoint: /x, copy_data: {}, rules: [{{path: a/**}}]}}]"
    assert parse_policy(text.format("")).mounts[0].copy_data is None
    assert parse_policy(text.format("{}")).mounts[0].copy_data == CopyData()


@pytest.mark.parametrize("name", ["auto", "observe", "theirs"])
def test_names_are_checked_only_against_what_is_known(name: str) -> None:
    text = f"mounts: [{{mountpoint: /x, backend: {name}, heat: {{source: {name}}}, rules: [{{path: a}}]}}]"
    assert parse_policy(text).mounts[0].backend == name
    assert parse_policy(text, known_backends=[name], known_heat_sources={name}).mounts[0].heat.source == name
    if name != "auto":
        with pytest.raises(PolicyError, match=r"backend: found .*\n.*heat\.source: found"):
            parse_policy(text, known_backends=[], known_heat_sources=[])


def test_effective_policy_has_every_default_in_human_units() -> None:
    policy = parse_policy("mounts: [{mountpoint: /x/, heat: {threshold: 7}, rules: [{path: /a/}]}]")
    plain = effective_policy(policy)
    assert plain["metrics"] == {"listen": "127.0.0.1:9909"}
    mount = plain["mounts"][0]
    assert mount["mountpoint"] == "/x"
    assert mount["limits"]["min_free_space"] == "5%"
    assert mount["heat"]["half_life"] == "10m"
    assert mount["rules"] == [
        {
            "path": "a",
            "promote": "hot",
            "growing": False,
            "threshold": 7.0,
            "recursive": True,
            "max_entries": 200_000,
            "min_age": "1h",
            "writers": "any",
            "unlisted": "refuse",
            "hardlinks": "refuse",
            "watched": "refuse",
            "chain": True,
            "xattrs": "copy",
            "recheck": "10m",
            "verify": "1d",
        }
    ]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "metrics: {listen: off}\nmounts: [{mountpoint: /x, rules: [{path: /}, {path: '**'}]}]",
        'mounts: [{mountpoint: "/caf\\udce9", scratch: "\\udce9", rules: [{path: "\\udce9/*\\n"}, {path: "ü"}]}]',
        "mounts: [{mountpoint: /x, copy_data: {patterns: ['a/*.py', /b/**]}, rules: [{path: '**'}]}]",
        (
            "mounts: [{mountpoint: /, limits: {entries_per_second: 0, min_free_space: 1GB}, quiet_period: 0.1234567, "
            "rules: [{path: 2024}, {path: 'on'}, {path: '~'}, {path: ' a '}]}]"
        ),
    ],
)
def test_what_is_dumped_is_loaded_to_the_same_effect(text: str, tmp_path: Path) -> None:
    policy = parse_policy(text)
    (tmp_path / "p.yaml").write_text(dump_policy(policy), "utf-8")
    again = load_policy(tmp_path / "p.yaml")
    assert effective_policy(again) == effective_policy(policy)
    assert dump_policy(again) == dump_policy(policy)


def fails(path: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    return str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert fails(missing) == f"{missing}: found no such file; allowed a readable YAML file"
    assert fails(tmp_path) == f"{tmp_path}: found a directory; allowed a readable YAML file"
    assert fails(tmp_path / "none" / "p.yaml").endswith("none/p.yaml: found no such file; allowed a readable YAML file")
    assert fails("a\0b").startswith(r"a\x00b: found an error")
    assert fails(tmp_path / ("x" * 300)).endswith("found an error (File name too long); allowed a readable YAML file")
    assert fails("/dev/zero") == "/dev/zero: found more than 1 MiB; allowed a policy, not some other file"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "Too many levels of symbolic links" in fails(loop)
    odd = tmp_path / "caf\udce9\n.yaml"
    assert fails(odd).endswith(r"caf\xe9\n.yaml: found no such file; allowed a readable YAML file")


@pytest.mark.needs("root")
def test_a_file_that_this_user_may_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "p.yaml"
    secret.write_text(GOOD)
    secret.chmod(0)
    os.seteuid(65_534)
    try:
        message = fails(secret)
    finally:
        os.seteuid(0)
    assert message == f"{secret}: found a file that this user may not read; allowed a readable YAML file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1: found nothing; allowed a mapping"),
        (b"a: b\nc: caf\xe9\n", "2: found the byte 0xe9, which is not UTF-8; allowed text in UTF-8"),
        ("mounts: []".encode("utf-16"), "1: found the byte 0xff, which is not UTF-8"),
        (b"\xef\xbb\xbfa: b", "1: a: found the unknown key 'a'"),
        (b"\0\0\0", "1: found the character U+0000"),
        (b"a:\r\n\tb: c\r\n", "2: found a tab"),
    ],
)
def test_bytes_that_are_no_policy(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    assert fails(path).startswith(f"{path}:{message}")


def test_a_policy_with_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_policy(str(path)) == parse_policy(GOOD)


def is_policy_or_error(text: str) -> bool:
    """Whether it was a policy; anything but a PolicyError breaks the test."""
    try:
        policy = parse_policy(text, "p.yaml", known_backends=BACKENDS, known_heat_sources=SOURCES)
    except PolicyError as error:
        message = str(error)
    else:
        assert effective_policy(parse_policy(dump_policy(policy))) == effective_policy(policy)
        return True
    assert all(line.startswith("p.yaml:") and "; allowed " in line for line in message.split("\n")), message
    assert message.replace("\n", "").isprintable()
    return False


def test_random_text_is_a_policy_or_an_error() -> None:
    chance = random.Random(21)
    pieces = [
        *" \n\t:-?,[]{}#&*!|>'\"%@`~=<.",
        "\n  ",
        "- ",
        ": ",
        "<<: ",
        "&a ",
        "*a",
        "!!int ",
        "---\n",
        "%YAML 1.1\n",
    ]
    pieces += ["mounts", "rules", "path", "mountpoint", "/x", "null", "true", "\\", "é", "\udce9", "\x00", "0", "\\x0z"]
    for _ in range(2500):
        is_policy_or_error("".join(chance.choices(pieces, k=chance.randrange(1, 25))))


def test_random_damage_to_a_good_policy_is_survived() -> None:
    chance = random.Random(22)
    survived = 0
    for _ in range(400):
        text = list(GOOD)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(4)] = chance.choice([*"\n\t :-[]{}*&!\"'#0a\udce9", "", "~", "!!set "])
        survived += is_policy_or_error("".join(text))
    assert 0 < survived < 400


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    "/",
    "10m",
    "5%",
    "**",
    "..",
    [],
    {},
    [1],
    {"path": "a"},
    "\udce9",
    "9" * 400,
]


def junk(chance: random.Random, template: Any) -> Any:
    """The template with some values, and whole branches, replaced by ones of the wrong kind."""
    if chance.random() < 0.12:
        return chance.choice(VALUES)
    if isinstance(template, dict):
        return {key if chance.random() < 0.95 else key[::-1]: junk(chance, value) for key, value in template.items()}
    if isinstance(template, list):
        return [junk(chance, value) for value in template]
    return template


def test_values_of_the_wrong_kind_at_every_key() -> None:
    chance = random.Random(23)
    whole = effective_policy(parse_policy(GOOD + "    copy_data: {patterns: [a/b.py]}\n"))
    survived = sum(is_policy_or_error(yaml.safe_dump(junk(chance, whole))) for _ in range(400))
    assert survived < 400
