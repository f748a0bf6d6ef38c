"""What the lab's counts must keep to. Never a time: the lab's machine is an emulated one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from lab.results import WORKLOADS, Results, Run, State

UNPROMOTED: Final[tuple[State, ...]] = ("plain", "unpromoted")
"""What every run must have measured."""
PROMOTED: Final[tuple[State, ...]] = ("metacopy", "opaque")
"""What a whole run must have measured besides, and what it cost."""

NOENT_SHARE: Final[Mapping[State, float]] = dict.fromkeys(("opaque", "layer", "layer+chain", "layer+chain+data"), 0.001)
"""Of plain's lookups answered with ENOENT, how many may be left in a launch."""

LAUNCH_SHARE: Final[Mapping[State, float]] = {
    "unpromoted": 1.1,
    "metacopy": 1.15,
    "opaque": 0.3,
    "prime": 1.0,
    "layer": 0.25,
    "layer+chain": 0.25,
    "layer+chain+data": 0.05,
}
"""Of plain's RPCs, how many a launch may take; on Linux 6.12 it was 1.00, 1.02, 0.24 and 0.92 over NFS 4.2."""
LAUNCH_SHARE_SHORT: Final[Mapping[State, float]] = {
    **LAUNCH_SHARE,
    "opaque": 0.5,
    "layer": 0.4,
    "layer+chain": 0.4,
    "layer+chain+data": 0.1,
}
"""The same for the short run, in which the names that exist weigh more: 0.97, 1.01 and 0.43."""
BY_HEAT_SHARE: Final[Mapping[State, float]] = {"opaque": 0.6, "layer+chain+data": 0.15}
"""The same for a launch after promotion by heat alone: directories that a launch hardly uses stay as they are."""

COLD_LOOKUPS: Final = 500
"""Looking at 500 files takes no fewer where caches are cold and the names are not kept by a layer of their own."""
ANSWERED_LOCALLY: Final[Mapping[str, int]] = {"stat missing": 20, "readdir": 20}
"""RPCs that a complete directory may take, for the directories on the way to it; it was 4."""
IN_LAYER: Final[Mapping[str, int]] = {"stat existing": 20, "stat missing": 20, "access": 20, "readdir": 20, "ls -l": 20}
"""The same in a metadata layer, below growing directories; it was 2."""
IN_CHAIN: Final[Mapping[str, int]] = dict.fromkeys(IN_LAYER, 0)
"""Where every ancestor is complete as well, nothing at all."""
KNOWN: Final[Mapping[str, int]] = {"stat existing": 20, "readdir": 20, "ls -l": 20}
"""RPCs that a directory may take that was just read; it was 0."""

RPCS_PER_ENTRY: Final[Mapping[State, Mapping[str, float]]] = {
    "metacopy": {"4.2": 7.0, "4.1": 5.0, "4.0": 5.0, "3": 2.0},
    "opaque": {"4.2": 8.0, "4.1": 6.0, "4.0": 6.0, "3": 3.5},
    "prime": {"4.2": 0.5, "4.1": 0.5, "4.0": 0.5, "3": 0.5},
    # discovery and all that is asked once for each small directory included: 1.7; with data, which is read, 5.6
    **dict.fromkeys(("layer", "layer+chain"), dict.fromkeys(("4.2", "4.1", "4.0", "3"), 3.0)),
    "layer+chain+data": dict.fromkeys(("4.2", "4.1", "4.0", "3"), 8.0),
}
"""What promoting an entry may take, for each version of NFS. Measured on Linux 6.12 with 2,000 entries: by chown (which
is ``metacopy``) 5.84 on 4.2 with cold caches, namely 2 LISTXATTRS, GETACL, OPEN, CLOSE and 0.84 LOOKUP; with warm ones
5.01, and 3.02 on 4.1 and 4.0, which have no LISTXATTRS. On 3, at the server, 1.12 and 1.03. By link and unlink (which
is ``opaque``) an ACCESS more."""


def check(results: Results, *, short: bool = False, only_layers: bool = False) -> list[str]:
    """What is not as it must be, a sentence for each.

    ``short`` says that the share was the small one, and that only the best backend was measured; ``only_layers`` that
    nothing but metadata layers was, and nothing by heat.
    """
    if not results.runs:
        return ["nothing has been measured"]
    return [f"{run.title}: {violation}" for run in results.runs for violation in _violations(run, short, only_layers)]


def _violations(run: Run, short: bool, only_layers: bool) -> Iterator[str]:
    promoted = () if short or only_layers else PROMOTED
    yield from _left_out(run, dict.fromkeys([*UNPROMOTED, *run.launch_by_heat, *promoted]), promoted)
    if not run.launch_by_heat and not only_layers:
        yield "no launch after promotion by heat alone was measured"
    yield from _without_bound(run)
    yield from _reader(run)
    yield from _storm(run)
    yield from _missing_names(run)
    yield from _workloads(run)
    yield from _launch(run, LAUNCH_SHARE_SHORT if short else LAUNCH_SHARE)
    yield from _by_heat(run)
    yield from _promotion(run)


def _left_out(run: Run, required: Iterable[State], promoted: Iterable[State]) -> Iterator[str]:
    """Violations that a missing measurement is."""
    for state in required:
        if state not in run.launch:
            yield f"no launch was measured in the state {state}"
        for workload in WORKLOADS:
            if workload not in run.workloads.get(state, {}):
                yield f"{workload} was not measured in the state {state}"
    for state in promoted:
        if state not in run.promotion:
            yield f"no promotion to the state {state} was measured"
    if "plain" not in run.launch_absent:
        yield "no launch with search paths that do not exist was measured"


def _without_bound(run: Run) -> Iterator[str]:
    """States that nobody has set bounds for; they would never fail."""
    for state in run.launch:
        if state not in LAUNCH_SHARE and state != "plain":
            yield f"there is no bound for a launch in the state {state}"
    for state in run.promotion:
        if run.nfs not in RPCS_PER_ENTRY.get(state, {}):
            yield f"there is no bound for a promotion to the state {state} over NFS {run.nfs}"


def _reader(run: Run) -> Iterator[str]:
    """I2: a reader notices nothing."""
    if run.reader_errors:
        yield f"a reader saw {run.reader_errors:,} errors during the promotion"
    if not run.view_identical:
        yield "the promoted view differs from what the server has"


def _storm(run: Run) -> Iterator[str]:
    """Whether the launch is what it claims to be; otherwise few requests mean nothing."""
    if run.scale is None:
        yield "nobody wrote down how many names a launch misses"
    elif "plain" in run.launch and run.launch["plain"].noent < run.scale.missing:
        yield (
            f"the plain launch looked for {run.launch['plain'].noent:,} missing names only, "
            f"at least {run.scale.missing:,} are in it: the storm is broken"
        )


def _missing_names(run: Run) -> Iterator[str]:
    if run.noent_in_complete is None:
        yield "nobody looked for lookups of missing names in complete directories"
    elif run.noent_in_complete:
        yield f"complete directories asked the server for {run.noent_in_complete:,} names that do not exist"
    for state, share in NOENT_SHARE.items():
        if state in run.launch and "plain" in run.launch:
            left, plain = run.launch[state].noent, run.launch["plain"].noent
            if left > share * plain:
                yield (
                    f"the launch in the state {state} looked for {left:,} missing names, "
                    f"more than {share:.1%} of plain's {plain:,}"
                )


def _workloads(run: Run) -> Iterator[str]:
    """Whether caches were cold, and what is complete answers for itself."""
    for state in (*UNPROMOTED, *PROMOTED):
        cell = run.workloads.get(state, {}).get("stat existing")
        if cell is not None and cell.rpcs.get("LOOKUP", 0) < COLD_LOOKUPS:
            yield f"stat existing in the state {state} took {cell.rpcs.get('LOOKUP', 0)} LOOKUPs: caches were warm"
    kinds = (
        ("opaque", "complete", ANSWERED_LOCALLY),
        ("prime", "primed", KNOWN),
        ("layer", "layered", IN_LAYER),
        ("layer+chain", "chained", IN_CHAIN),
        ("layer+chain+data", "chained", IN_CHAIN),
    )
    for state, kind, bounds in kinds:
        for workload, bound in bounds.items():
            cell = run.workloads.get(state, {}).get(workload)
            if cell is not None and run.requests(cell) > bound:
                yield f"{workload} in a {kind} directory took {run.requests(cell):,} RPCs, more than {bound}"


def _by_heat(run: Run) -> Iterator[str]:
    if "plain" in run.launch:
        plain = run.requests(run.launch["plain"])
        for state, cell in run.launch_by_heat.items():
            took, share = run.requests(cell), BY_HEAT_SHARE.get(state)
            if share is None:
                yield f"there is no bound for a launch by heat alone in the state {state}"
            elif took > share * plain:
                yield (
                    f"by heat alone the launch in the state {state} took {took:,} RPCs, "
                    f"more than {share:.0%} of plain's {plain:,}"
                )


def _launch(run: Run, shares: Mapping[State, float]) -> Iterator[str]:
    if "plain" not in run.launch:
        return
    plain = run.requests(run.launch["plain"])
    for state, share in shares.items():
        if state in run.launch:
            took = run.requests(run.launch[state])
            if took > share * plain:
                yield f"the launch in the state {state} took {took:,} RPCs, more than {share:.0%} of plain's {plain:,}"


def _promotion(run: Run) -> Iterator[str]:
    for state, cost in run.promotion.items():
        bound = RPCS_PER_ENTRY.get(state, {}).get(run.nfs)
        if bound is not None and cost.rpcs_per_entry > bound:
            yield f"promotion to the state {state} took {cost.rpcs_per_entry:.2f} RPCs per entry, more than {bound:g}"
        if not cost.entries:
            yield f"promotion to the state {state} promoted nothing"
