"""The daemon's answers as tables. Texts go in as :class:`rich.text.Text`, in which brackets are only brackets."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from promoterd.cli import render_warm
from promoterd.units import format_duration, format_size, rough

_STYLES = {
    "active": "green",
    "complete": "green",
    "working": "green",
    "marked": "green",
    "pinned": "yellow",
    "shadowing": "cyan",
    "hot": "cyan",
    "primed": "green",
    "stale": "yellow",
    "deferred": "yellow",
    "absent": "yellow",
    "opening": "yellow",
    "closing": "yellow",
    "refused": "red",
    "failed": "red",
    "busy": "red",
    "unfit": "red",
}


def status(answer: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Each mount of a daemon."""
    up = format_duration(round(answer["uptime_seconds"]))
    yield _text(
        f"promoterd {answer['version']}, pid {answer['pid']}, up {up}, "
        f"kernel {answer['kernel']}, policy {answer['policy']}"
    )
    for mount in answer["mounts"]:
        yield ""
        yield _mount(mount)
        troubled = mount.get("troubled", ())
        yield from _with_reasons("troubled", troubled)
        more = mount.get("troubled_total", 0) - len(troubled)
        if more > 0:
            yield _text(f"… and {more} more")
        yield from _with_reasons("left for now", mount.get("postponed", ()), "hot")
        yield from _with_reasons("to be reopened when unmounted", mount.get("deferred_reopens", ()), "deferred")


def _mount(mount: Mapping[str, Any]) -> Table:
    facts = _facts(mount["mountpoint"])
    facts.add_row("phase", _styled(mount["phase"], mount["reason"]))
    if mount["phase"] == "unfit":
        facts.add_row("", _text(f"`promoterd doctor {mount['mountpoint']}` says what it needs"))
    if "backend" in mount:
        facts.add_row("backend", _text(mount["backend"]))
    for name, text in _restraint(mount):
        facts.add_row(name, text)
    if "states" in mount:
        counts = [f"{number} {state}" for state, number in mount["states"].items() if number]
        facts.add_row("directories", _text(", ".join(counts) or "all cold"))
    data = mount.get("data")
    if data:
        facts.add_row("data", _text(f"{_amount(data['held'])} of {format_size(data['budget'])} held"))
    for name, text in (*render_warm.facts(mount.get("warming")), *_heat(mount)):
        facts.add_row(name, text)
    for call in mount.get("stuck", ()):
        facts.add_row("stuck", _text(f"{call['call']} for {format_duration(round(call['seconds']))}", "red"))
    return facts


def _heat(mount: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    """Where heat comes from, and where not."""
    for source in mount.get("heat_sources", ()):
        yield "heat source", _text(f"{source['name']} ({source['why']}): {_words(source['stats'])}")
    for name, reason in mount.get("heat_sources_left", {}).items():
        yield "", _text(f"not {name}: {reason}")
    if "heat_sources" in mount and not mount["heat_sources"]:
        yield "heat source", _text("none: the log says why; directories are promoted by hand alone", "red")


def _restraint(mount: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    """What keeps the daemon from promoting, or from promoting faster."""
    if mount.get("paused"):
        yield "paused", _text(f"{mount['paused']} (`promoterd resume` ends it)", "red")
    if mount.get("held"):
        yield "held", _text(mount["held"]["text"], "yellow")
    if mount.get("begins_at"):
        clock = time.strftime("%T", time.localtime(mount["begins_at"]))
        yield "begins", _text(f"with `promote: always` at {clock} (limits.start_spread)")
    pace = mount.get("pace")
    if pace and (pace["most"] is None or pace["requests_per_second"] < pace["most"]):
        yield "pace", _text(_pace(pace))
    if mount.get("budget_left") is not None:
        yield "budget", _text(f"{mount['budget_left']:,.0f} requests left")


def _pace(pace: Mapping[str, Any]) -> str:
    """How fast the server is asked, and why not faster."""
    most = "" if pace["most"] is None else f" of {pace['most']:,.0f}"
    answers = ""
    if pace["answer_seconds"] is not None:
        took, usual = (f"{1000 * pace[which]:.2g} ms" for which in ("answer_seconds", "usual_seconds"))
        answers = f"; answers took {took}, usually {usual}"
    return f"{pace['requests_per_second']:,.0f}{most} requests per second{answers}"


def _amount(size: int) -> str:
    """A number of bytes, for people: three digits will do."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:  # noqa: PLR2004 - the next unit
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"  # noqa: PLR2004 - three digits


_NOTHING = "Nothing is warm. (What is used together with a listing counts when the policy's `heat: settle` has passed.)"


def top(answer: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The hottest directories, what promoting them saves, and when that has paid."""
    table = _table("heat", "saved/h", "pays back in", "state", "mount", "path")
    for column in table.columns[:3]:
        column.justify = "right"
    for row in answer["directories"]:
        numbers = (f"{row['heat']:.1f}", f"{row['saved_per_hour']:,.0f}", _pays_back(row))
        table.add_row(*map(_text, numbers), _styled(row["state"]), _text(row["mount"]), _text(row["path"]))
    yield table if answer["directories"] else _text(_NOTHING)


def _pays_back(worth: Mapping[str, Any]) -> str:
    if worth["payback_seconds"] is not None:
        return format_duration(rough(worth["payback_seconds"]))
    return "paid" if worth["saved_per_hour"] > 0 else "never"


def promotion(answer: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What came of a promotion by hand."""
    pinned = {one["path"]: one["holders"] for one in answer.get("pinned", ())}
    for one in answer["promotions"]:
        directories = _count(len(one["directories"]), "directory", "directories")
        many = f"{directories}, {_count(one['entries'], 'entry', 'entries')}"
        if one["outcome"] == "marked":
            state = "complete" if "active" not in answer else "pinned" if one["path"] in pinned else "active"
            yield _line(_styled(state), f" {one['path']}: {many}")
        elif one["outcome"] == "observed":
            yield _text(f"would be promoted: {one['path']}: {many} (the backend changes nothing)")
        elif one["outcome"] == "primed":
            yield _line(_styled("primed"), f" {one['path']}: {many} read; the daemon keeps on while it is hot")
        else:
            yield _line(_styled(one["outcome"]), f" {one['path']}: {one['reason']}")
        for link in one["broken_hardlinks"]:
            yield _text(f"  hard link broken, as the policy allows: {link}", "yellow")
    if "active" not in answer and any(one["outcome"] == "marked" for one in answer["promotions"]):
        yield _text("It takes effect at the daemon's next activation; `promoterd explain` tells.")
    for path, holders in pinned.items():
        yield _text(f"{path} is pinned: lookups ask the server until nobody holds it, at the next activation", "yellow")
        yield from _holders(holders)


def reopened(answer: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What is merged again, what has to wait, and what is refused."""
    refused = answer.get("refused", [])
    for path in answer["reopened"]:
        yield _text(f"reopened {path}")
    if not answer["reopened"] and not answer["deferred"] and not refused:
        yield _text("Nothing was complete.")
    yield from _with_reasons("deferred until the overlay is unmounted", answer["deferred"], "deferred")
    if answer["deferred"]:
        yield _text("Then `promoterd reopen --offline --deferred --upper DIR` does them.")
    yield from _with_reasons("refused, and complete as before", refused, "refused")
    for hint in dict.fromkeys(row["hint"] for row in refused if row["hint"]):
        yield _text(hint)


def explanation(answer: Mapping[str, Any]) -> Iterator[RenderableType]:
    """All that is known of one directory."""
    rule, heat = answer["rule"], answer["heat"]
    facts = _facts(f"{answer['path']} on {answer['mount']}")
    since = "" if answer["since"] is None else time.strftime(" since %F %T", time.localtime(answer["since"]))
    facts.add_row("state", _styled(answer["state"], since.strip() or None, answer["reason"]))
    facts.add_row("rule", _text("none: it is never touched" if rule is None else f"{rule['number']}: {rule['path']}"))
    known = "known to the daemon only" if heat is None else f"{heat:g}"
    facts.add_row(
        "heat", _text(known if answer["threshold"] is None else f"{known} (threshold {answer['threshold']:g})")
    )
    worth = answer.get("payback")
    if worth is not None:
        saved = f"{worth['saved_per_hour']:,.0f} requests an hour saved, for {worth['cost']:,} once"
        facts.add_row("payback", _text(f"{_pays_back(worth)} ({saved})"))
    effect = {True: "in effect", False: "not in effect", None: "effect unknown"}[answer["in_effect"]]
    marks = {"none": "no mark", "ours": f"marked, {effect}", "foreign": "opaque by a user's doing", "moved": "renamed"}
    facts.add_row("on disk", _text(f"{marks[answer['mark']]} (backend {answer['backend']})"))
    layers = answer["lower_layers"]
    facts.add_row(
        "lower", _text(f"{_count(answer['entries'], 'entry', 'entries')} in {', '.join(layers) or 'no layer'}")
    )
    facts.add_row("not shadowed", _text(_count(len(answer["not_shadowed"]), "entry", "entries")))
    if answer.get("not_complete_children"):
        facts.add_row("children", _text(f"{len(answer['not_complete_children'])} not complete"))
    facts.add_row("what keeps it", _text(answer["blocked_by"] or "nothing", "yellow" if answer["blocked_by"] else ""))
    yield facts
    if answer["holders"]:
        yield _text("held by")
        yield from _holders(answer["holders"])
    yield from _names("not shadowed", answer["not_shadowed"])
    yield from _names("child directories that are not complete", answer.get("not_complete_children", ()))


def _holders(holders: Iterable[Mapping[str, Any]]) -> Iterator[Text]:
    """Who holds a directory; nobody is found where the process lives in another mount namespace."""
    found = False
    for holder in holders:
        found = True
        yield _text(f"  pid {holder['pid']} ({holder['command']}) by {holder['by']}")
    if not found:
        yield _text("  by a process that cannot be seen from here, or something in it was used just now")


def _names(title: str, names: Iterable[str]) -> Iterator[Text]:
    listed = list(names)
    if listed:
        yield _text(f"{title}:")
        yield from (_text(f"  {name}") for name in listed)


def _with_reasons(title: str, rows: Iterable[Mapping[str, Any]], state: str = "") -> Iterator[RenderableType]:
    listed = list(rows)
    if not listed:
        return
    table = _table(title, "path", "reason")
    for row in listed:
        table.add_row(_styled(row.get("state", state)), _text(row["path"]), _text(row["reason"] or ""))
    yield table


def _facts(title: str) -> Table:
    table = _table("", "", title=title)
    table.show_header = False
    return table


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(
        title=None if title is None else _text(title, "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in columns:
        table.add_column(_text(column), overflow="fold")
    return table


def _line(first: Text, rest: str) -> Text:
    return Text.assemble(first, _text(rest))


def _styled(word: str, *more: str | None) -> Text:
    said = [part for part in more if part]
    return Text.assemble(Text(word, _STYLES.get(word, "")), _text(f" ({'; '.join(said)})" if said else ""))


def _text(text: str, style: str = "") -> Text:
    return Text(text, style, overflow="fold")


def _words(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in numbers.items() if value is not None)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
