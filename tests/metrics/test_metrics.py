import math
import platform
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from promoterd import __version__
from promoterd.errors import UsageError
from promoterd.heat.base import Kind, Part, SourceStats
from promoterd.metrics import OUTCOMES, Metrics, MetricsServer, MountMetrics
from promoterd.promotion import Outcome
from promoterd.states import State

MOUNT = "/mnt/app"
LOCAL = ("127.0.0.1", 0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def mount(metrics: Metrics) -> MountMetrics:
    return metrics.of(MOUNT, "opaque")


@pytest.fixture
def server(metrics: Metrics) -> Iterator[MetricsServer]:
    made = metrics.serve(LOCAL)
    yield made
    made.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"promoterd_{name}", {"mount": MOUNT, **labels})


def scrape(server: MetricsServer) -> str:
    assert server.address is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{server.address[1]}/metrics", timeout=5) as answer:
        body: bytes = answer.read()
    return body.decode()


def test_every_series_of_a_mount_is_there_before_anything_happened(metrics: Metrics, mount: MountMetrics) -> None:
    del mount
    metrics.mount_working(MOUNT, on=True)
    families = list(metrics.registry.collect())
    assert [family.name for family in families if not family.samples] == []
    for family in families:
        for sample in family.samples:
            if family.name.startswith(("promoterd_upper", "promoterd_answer")):
                assert math.isnan(sample.value)
            elif family.name in {"promoterd_requests_per_second", "promoterd_budget_left_requests"}:
                assert (family.name, sample.value) == (family.name, math.inf)
            elif sample.labels.get("mount") and "info" not in family.name and family.name != "promoterd_mount_working":
                assert (family.name, sample.value) == (family.name, 0.0)
    assert {value(metrics, "directories", state=state) for state in State} == {0.0}
    assert {value(metrics, "promotions_total", outcome=outcome) for outcome in Outcome} == {0.0}
    assert {value(metrics, "heat_events_total", kind=kind) for kind in Kind} == {0.0}


def test_the_ways_a_promotion_ends_are_those_that_promotion_knows() -> None:
    assert set(OUTCOMES) == {outcome.value for outcome in Outcome}


def test_names_keep_the_rules_of_prometheus(metrics: Metrics, mount: MountMetrics) -> None:
    del mount
    for family in metrics.registry.collect():
        assert family.name.startswith("promoterd_")
        assert not any(word in family.name for word in ("_ms", "_millis", "_kib", "_mib", "percent"))
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert set(sample.labels) <= {
                *(
                    "mount",
                    "state",
                    "outcome",
                    "effect",
                    "kind",
                    "backend",
                    "source",
                    "version",
                    "python",
                    "kernel",
                    "result",
                    "reason",
                    "le",
                )
            }
            if family.type == "counter":
                assert sample.name.endswith("_total")


def test_states_are_counted_as_they_change(metrics: Metrics, mount: MountMetrics) -> None:
    mount.state_changed(None, State.HOT)
    mount.state_changed(None, State.HOT)
    mount.state_changed(State.HOT, State.SHADOWING)
    mount.state_changed(State.HOT, None)
    assert value(metrics, "directories", state="hot") == 0
    assert value(metrics, "directories", state="shadowing") == 1


def test_what_happens_is_counted(metrics: Metrics, mount: MountMetrics) -> None:
    mount.promoted("marked", 2.0)
    mount.promoted("refused", 0.2)
    mount.copied(256)
    mount.copied(44)
    mount.backlog(7)
    mount.throttled(1.5)
    mount.activated(3, 1, 0.04)
    mount.heat("open", 12.0)
    mount.heat("nfs_lookup", 2.0)
    mount.overflowed()
    mount.upper_free(1_000, 50, 4_000, 100)
    mount.paused(on=True)
    mount.trip_wire(on=True)
    mount.rechecked(9)
    mount.went_stale()
    mount.ghosts_removed(4)
    mount.reopened("deferred")
    mount.deferred(2)
    mount.data_held(2048)
    mount.data_evicted(100)
    mount.data_evicted(20)
    for name, labels, expected in [
        ("promotions_total", {"outcome": "marked"}, 1),
        ("promotion_duration_seconds_sum", {}, 2.2),
        ("promotion_duration_seconds_count", {}, 2),
        ("entries_copied_total", {}, 300),
        ("backlog_directories", {}, 7),
        ("throttled_seconds_total", {}, 1.5),
        ("activations_total", {}, 1),
        ("activation_effects_total", {"effect": "active"}, 3),
        ("activation_effects_total", {"effect": "pinned"}, 1),
        ("activation_duration_seconds_count", {}, 1),
        ("heat_events_total", {"kind": "open"}, 12),
        ("heat_events_total", {"kind": "nfs_lookup"}, 2),
        ("heat_overflows_total", {}, 1),
        ("upper_free_bytes", {}, 1000),
        ("upper_free_inodes", {}, 50),
        ("upper_size_bytes", {}, 4000),
        ("upper_inodes", {}, 100),
        ("mount_paused", {}, 1),
        ("mount_trip_wire", {}, 1),
        ("rechecks_total", {}, 9),
        ("stale_total", {}, 1),
        ("ghosts_removed_total", {}, 4),
        ("reopens_total", {"outcome": "deferred"}, 1),
        ("reopens_deferred", {}, 2),
        ("data_bytes", {}, 2048),
        ("data_evicted_bytes_total", {}, 120),
    ]:
        assert value(metrics, name, **labels) == pytest.approx(expected), name


def test_a_heat_source_in_numbers(metrics: Metrics, mount: MountMetrics) -> None:
    mount.source(SourceStats(limit=1000, watches=40, armed=38, refused=2, events=9, overflows=0), 500, evicted=3)
    mount.source(SourceStats(limit=1000, watches=41, armed=39, refused=1, events=9, overflows=0), 501, evicted=8)
    found = {
        name: value(metrics, name)
        for name in ("heat_watches", "heat_watches_limit", "heat_directories_armed", "heat_directories_refused")
    }
    assert list(found.values()) == [41, 1000, 39, 1]
    assert value(metrics, "tracked_directories") == 501
    assert value(metrics, "tracker_evictions_total") == 8
    numbers = SourceStats(limit=None, watches=0, armed=0, refused=0, events=0, overflows=0)
    for unattributed, sampled in ((4, 0), (7, 2)):
        mount.source(replace(numbers, unattributed=unattributed, sampled=sampled), 0)
    assert (value(metrics, "heat_unattributed_total"), value(metrics, "heat_sampled_total")) == (7, 2)
    assert value(metrics, "heat_watches_limit") == math.inf


def test_heat_sources_by_name(metrics: Metrics, mount: MountMetrics) -> None:
    def part(name: str, events: int) -> Part:
        return Part(name, "", SourceStats(limit=None, watches=0, armed=0, refused=0, events=events, overflows=0))

    mount.sources([part("fanotify", 3), part("nfs-trace", 5)])
    mount.sources([part("fanotify", 4), part("nfs-trace", 5)])
    mount.sources([part("nfs-trace", 7), part("inotify", 2)])
    names = ("fanotify", "inotify", "nfs-trace")
    assert [value(metrics, "heat_source", source=name) for name in names] == [0, 1, 1]
    assert [value(metrics, "heat_source_events_total", source=name) for name in names] == [4, 2, 7]


def test_a_stuck_mount_is_news_once(metrics: Metrics, mount: MountMetrics) -> None:
    assert [mount.stuck(calls) for calls in (0, 2, 3, 0, 1)] == [False, True, False, False, True]
    assert (value(metrics, "mount_stuck"), value(metrics, "mount_stuck_calls")) == (1, 1)


def test_a_mount_that_comes_again_begins_its_gauges_anew_and_goes_on_counting(
    metrics: Metrics, mount: MountMetrics
) -> None:
    other = metrics.of("/mnt/other", "observe")
    for one in (mount, other):
        one.copied(10)
        one.state_changed(None, State.ACTIVE)
    metrics.mount_working(MOUNT, on=True)
    metrics.mount_working(MOUNT, on=False)
    assert value(metrics, "mount_working") == 0
    for gone in ("backlog_directories", "mount_stuck", "upper_free_bytes"):
        assert value(metrics, gone) is None
    assert value(metrics, "directories", state="active") is None
    assert value(metrics, "backend_info", backend="opaque") is None
    mount.state_changed(State.ACTIVE, State.STALE)  # work that was under way must not bring it back
    mount.backlog(5)
    assert value(metrics, "backlog_directories") is None
    metrics.of(MOUNT, "finalize").copied(5)
    assert value(metrics, "directories", state="active") == 0
    assert value(metrics, "entries_copied_total") == 15
    assert value(metrics, "backend_info", backend="finalize") == 1
    assert metrics.registry.get_sample_value("promoterd_directories", {"mount": "/mnt/other", "state": "active"}) == 1
    metrics.backend(MOUNT, "opaque")
    assert value(metrics, "backend_info", backend="finalize") is None
    metrics.forget(MOUNT)
    assert value(metrics, "mount_working") is None


def test_what_the_daemon_says_of_itself(metrics: Metrics) -> None:
    labels = {"version": __version__, "python": platform.python_version(), "kernel": platform.release()}
    get = metrics.registry.get_sample_value
    assert get("promoterd_build_info", labels) == 1
    loaded = get("promoterd_policy_last_reload_success_timestamp_seconds")
    assert loaded == pytest.approx(time.time(), abs=30)
    metrics.reloaded(ok=False)
    assert get("promoterd_policy_last_reload_successful") == 0
    assert get("promoterd_policy_last_reload_success_timestamp_seconds") == loaded
    metrics.reloaded(ok=True)
    assert get("promoterd_policy_last_reload_successful") == 1
    metrics.beat(True)
    metrics.beat(False)
    metrics.beat(False)
    assert get("promoterd_watchdog_beats_total", {"result": "given"}) == 1
    assert get("promoterd_watchdog_beats_total", {"result": "withheld"}) == 2


def test_two_daemons_in_one_process_do_not_meet(metrics: Metrics) -> None:
    Metrics().of(MOUNT, "opaque").copied(1)
    assert value(metrics, "entries_copied_total") is None


# Serving


def test_a_scrape_gives_what_prometheus_reads(server: MetricsServer, mount: MountMetrics) -> None:
    mount.copied(3)
    text = scrape(server)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert [sample.value for sample in families["promoterd_entries_copied"].samples] == [3.0]
    assert "_created" not in text


def test_an_odd_mount_point_is_a_label_like_any_other(server: MetricsServer, metrics: Metrics) -> None:
    metrics.of('/mnt/"quoted" \\xff', "opaque").copied(1)
    families = {family.name: family for family in text_string_to_metric_families(scrape(server))}
    (sample,) = families["promoterd_entries_copied"].samples
    assert sample.labels == {"mount": '/mnt/"quoted" \\xff'}


def test_a_port_that_is_taken_says_so(server: MetricsServer, metrics: Metrics) -> None:
    assert server.address is not None
    with pytest.raises(
        UsageError, match=f"metrics cannot be served at 127.0.0.1:{server.address[1]}: Address"
    ) as caught:
        metrics.serve(server.address)
    assert "ss -ltnp" in str(caught.value.hint)


def test_an_address_that_is_not_ours_says_so(metrics: Metrics) -> None:
    with pytest.raises(UsageError, match=r"metrics cannot be served at 192\.0\.2\.1:9909"):
        metrics.serve(("192.0.2.1", 9909))


def test_closing_frees_the_port_at_once_also_right_after_the_start(metrics: Metrics) -> None:
    before = set(threading.enumerate())
    server = metrics.serve(LOCAL)
    address = server.address
    assert address is not None
    server.close()
    server.close()
    again = metrics.serve(address)
    assert again.address == address
    again.close()
    assert set(threading.enumerate()) <= before


def test_a_scraper_that_never_asks_holds_up_neither_others_nor_the_end(server: MetricsServer) -> None:
    assert server.address is not None
    with socket.create_connection(server.address):
        assert "promoterd_build_info" in scrape(server)
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 2


def test_no_metrics_are_served_where_policy_says_off(metrics: Metrics) -> None:
    server = metrics.serve(None)
    assert server.address is None
    server.close()
