import re
from pathlib import Path

import pytest

from promoterd.errors import PolicyError
from promoterd.policy import Policy, load_policy, reference
from promoterd.policy.globs import Glob, normalise
from promoterd.policy.load import parse_policy
from promoterd.policy.schema import section_of
from promoterd.policy.section import Section

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "policy.example.yaml"
REFERENCE = ROOT / "docs" / "policy.md"
TEXT = REFERENCE.read_text("utf-8")


def sections(model: type[Section]) -> set[type[Section]]:
    inner = {section_of(field.annotation) for field in model.model_fields.values()} - {None}
    return {model}.union(*(sections(part) for part in inner if part))


def test_every_key_has_a_description() -> None:
    for model in sections(Policy):
        for name, field in model.model_fields.items():
            assert field.description, (model, name)
            assert field.description.endswith("."), (model, name)


def test_the_reference_has_a_table_of_every_model() -> None:
    assert set(reference.TABLES.values()) == sections(Policy)
    assert sorted(re.findall(r"<!-- keys: (\w+) -->", TEXT)) == sorted(reference.TABLES)


def test_the_reference_is_up_to_date() -> None:
    assert reference.updated(TEXT) == TEXT, "run: python -m promoterd.policy.reference docs/policy.md"


def test_the_reference_is_written_in_place(tmp_path: Path) -> None:
    document = tmp_path / "policy.md"
    document.write_text("before\n<!-- keys: LogPolicy -->\nold\n<!-- end -->\nafter\n", "utf-8")
    reference.main([str(document)])
    text = document.read_text("utf-8")
    assert text.startswith("before\n<!-- keys: LogPolicy -->\n| key |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| `level` | debug, info, warning or error | `info` |" in text
    assert "old" not in text


def test_the_tables_have_four_columns() -> None:
    for model in reference.TABLES.values():
        for line in reference.table(model).splitlines():
            assert len(re.findall(r"(?<!\\)\|", line)) == 5, line


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_the_examples_in_the_reference_are_policies(block: str) -> None:
    if block.startswith("rules:"):
        block = "mounts:\n- mountpoint: /srv/software\n" + re.sub(r"^", "  ", block, flags=re.MULTILINE).rstrip() + "\n"
    assert parse_policy(block).warnings == ()


def test_the_error_messages_in_the_reference_are_real() -> None:
    (block,) = re.findall(r"```\n(policy\.yaml:.*?)```", TEXT, re.DOTALL)
    lines = ["mounts:", "- mountpoint: /x", *["  # comment"] * 6, "  backend: opaqe", *[""] * 3, "  rules:"]
    lines.append("  - {path: a, min_age: 10min}")
    with pytest.raises(PolicyError) as caught:
        parse_policy(
            "\n".join(lines), "policy.yaml", known_backends=["finalize", "layer", "observe", "opaque", "prime"]
        )
    assert str(caught.value) + "\n" == block


def glob_rows() -> list[tuple[str, list[str], list[str]]]:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|$", TEXT.partition("| glob |")[2].partition("\n\n")[0], re.MULTILINE
    )
    return [(glob, re.findall("`([^`]+)`", yes), re.findall("`([^`]+)`", no)) for glob, yes, no in rows]


@pytest.mark.parametrize(("glob", "yes", "no"), glob_rows())
def test_the_table_of_globs_in_the_reference_is_true(glob: str, yes: list[str], no: list[str]) -> None:
    compiled = Glob(normalise(glob))
    assert [path for path in yes if not compiled.matches(path)] == []
    assert [path for path in no if compiled.matches(path)] == []


def test_the_table_of_globs_was_found() -> None:
    assert len(glob_rows()) >= 9


def test_the_example_policy_is_good_and_does_what_its_comments_say() -> None:
    policy = load_policy(EXAMPLE, known_backends=["opaque"], known_heat_sources=["inotify"])
    assert policy.warnings == ()
    (mount,) = policy.mounts
    for path in (b"apps", b"apps/nuke", b"lib", b"lib/openexr", b"python"):
        assert mount.is_growing(path), path
        assert mount.may_promote_below(path), path
    for path in (b"apps/nuke/15.1v3", b"apps/nuke/15.1v3/plugins/a", b"lib/openexr/3.2", b"python/3.11/lib"):
        assert mount.may_promote(path), path
    for path in (b"", b"shots", b"shots/sq01/site-packages", b"tools/dev/x", b"tools/other"):
        assert not mount.may_promote(path), path
    assert not mount.may_promote_below(b"shots")
    library = mount.rule_for(b"apps/nuke/15.1v3/lib")
    assert library is not None
    assert (library.promote, library.writers) == ("always", "none")
    packages = mount.rule_for(b"python/3.11/lib/python3.11/site-packages")
    assert packages is not None
    assert packages.min_age == 86_400.0


def test_the_example_policy_shows_every_section() -> None:
    written = EXAMPLE.read_text("utf-8")
    for name in [*Policy.model_fields, "heat", "limits", "rules", "growing", "always", "never"]:
        assert re.search(rf"^[ -]*{name}:|: {name}$", written, re.MULTILINE), name
