import pytest

from promoterd.policy.load import parse_policy


def warnings(*rules: str) -> list[str]:
    listed = "".join(f"\n  - {rule}" for rule in rules)
    policy = parse_policy(f"mounts:\n- mountpoint: /srv/view\n  rules:{listed}\n", "p.yaml")
    return list(policy.warnings)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{path: apps}", "{path: /apps/}"),
        ("{path: '**'}", "{path: apps}"),
        ("{path: 'apps/**'}", "{path: 'apps/*/lib'}"),
        ("{path: 'apps/**'}", "{path: 'apps/**'}"),
        ("{path: 'apps/**'}", "{path: 'apps/**/x'}"),
        ("{path: apps, promote: never}", "{path: 'apps/*'}"),
        ("{path: 'a*', promote: never}", "{path: 'a*/b'}"),
        ("{path: /, promote: never}", "{path: apps}"),
        ("{path: 'apps/**', growing: true}", "{path: apps/x}"),
    ],
)
def test_a_rule_that_an_earlier_one_hides(first: str, second: str) -> None:
    (warning,) = [text for text in warnings("{path: other}", first, second) if "never matches" in text]
    assert warning.startswith("p.yaml:6: mounts[0].rules[2].path: ")
    assert "rules[1] (" in warning


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{path: 'apps/**'}", "{path: apps}"),
        ("{path: '**'}", "{path: /}"),
        ("{path: 'apps/*'}", "{path: 'apps/**'}"),
        ("{path: apps}", "{path: apps/x}"),
        ("{path: 'apps/x/**'}", "{path: 'apps/**'}"),
        ("{path: apps/x, promote: never}", "{path: 'apps/**'}"),
        ("{path: '**/lib'}", "{path: lib64}"),
    ],
)
def test_no_false_alarms(first: str, second: str) -> None:
    assert [text for text in warnings(first, second) if "never matches" in text] == []


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("{path: srv/view/apps}", "rules[0].path: paths are relative to the mount; did you mean 'apps'?"),
        ("{path: /srv/view}", "rules[0].path: paths are relative to the mount; did you mean '/'?"),
        ("{path: 'apps/{a,b}/**'}", "rules[0].path: braces are ordinary characters"),
        ("{path: '!apps'}", "rules[0].path: '!' is an ordinary character"),
        ("{path: 'apps/lib**'}", "rules[0].path: '**' means any number of directories only between slashes"),
        ("{path: apps, growing: true}", "mounts[0].rules: no rule lets anything be promoted"),
        ("{path: apps, promote: never}", "mounts[0].rules: no rule lets anything be promoted"),
    ],
)
def test_what_is_hardly_meant(rule: str, words: str) -> None:
    (warning,) = warnings(rule.replace("}", ", recursive: false}") if rule.count("}") == 1 else rule)
    assert words in warning


@pytest.mark.parametrize("path", ["apps", "srv/viewer", "'**/lib/**'", r"'\{a,b}'", "'{a}'", r"'\!x'", "a/b", "/"])
def test_what_is_surely_meant(path: str) -> None:
    assert warnings(f"{{path: {path}, recursive: false}}") == []


@pytest.mark.parametrize(
    ("path", "better"),
    [("apps/*", "apps/*/**"), ("'**/lib'", "**/lib/**"), ("/", "**"), ("apps", "apps/**")],
)
def test_a_rule_that_governs_nothing_of_what_is_inside(path: str, better: str) -> None:
    (warning,) = warnings(f"{{path: {path}}}", "{path: 'other/**'}")
    assert warning.endswith(
        "rules[0].path: no rule matches the directories inside, so it is refused if it has any; "
        f"add a rule for '{better}'"
    )
    assert warnings(f"{{path: {path}}}", f"{{path: '{better}'}}") == []
    assert warnings(f"{{path: {path}}}", "{path: '**', promote: never}") == []


@pytest.mark.parametrize(("backend", "doubted"), [("opaque", True), ("layer", False), ("auto", False)])
def test_copies_that_the_backend_does_not_make(backend: str, *, doubted: bool) -> None:
    text = f"mounts:\n- mountpoint: /x\n  backend: {backend}\n  copy_data: {{}}\n  rules: [{{path: a/**}}]\n"
    expected = [f"p.yaml:4: mounts[0].copy_data: the backend {backend} copies no data, only `layer` does"]
    assert list(parse_policy(text, "p.yaml").warnings) == (expected if doubted else [])
