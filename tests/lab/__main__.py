"""``make lab``: boots a stock Debian kernel, runs the real daemon on real NFS there, and reports what it did."""

import os
import platform
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lab import commands, plots, report, thresholds
from lab.errors import LabError
from lab.jobs import Job, Lab, measuring, neighbouring, racing, rebooting, testing
from lab.kernel import SERIES, fetch
from lab.machine import QEMU
from lab.results import Results
from lab.share import FULL, SHORT
from promoterd import __version__

ROOT = Path(__file__).parents[2]
_MINUTE = 60.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)
_begun = time.monotonic()


@app.command()
def main(  # noqa: PLR0913 - the options of a command
    kernel: Annotated[str, typer.Option(help=f"Kernel series: {' or '.join(SERIES)}.")] = SERIES[0],
    build: Annotated[Path, typer.Option(help="Where images, logs and results are kept.")] = ROOT / "build" / "lab",
    nfs: Annotated[list[str] | None, typer.Option(help="Measure over these versions of NFS: 4.2 and 3.")] = None,
    mount: Annotated[str, typer.Option(help="Mount options of NFS for what is measured.")] = "actimeo=600",
    upper: Annotated[str, typer.Option(help="Upper file system for what is measured: ext4, xfs or tmpfs.")] = "ext4",
    latency: Annotated[float, typer.Option(help="Milliseconds that each round trip takes besides.")] = 0.0,
    *,
    short: Annotated[
        bool, typer.Option("--short", help="A sixth of the share, NFS 4.2, the best backend, some tests.")
    ] = False,
    measure: Annotated[bool, typer.Option(help="Measure.")] = True,
    test: Annotated[bool, typer.Option(help="Run the tests in the guest.")] = True,
    only_layers: Annotated[
        bool, typer.Option("--only-layers", help="Measure metadata layers and little else.")
    ] = False,
    race: Annotated[
        bool, typer.Option("--race", help="Time the metadata layer against a local disk, and chown.")
    ] = False,
    neighbour: Annotated[
        bool, typer.Option("--neighbour", help="Time what another client notices of the daemon's work.")
    ] = False,
    instructions: Annotated[
        bool, typer.Option("--instructions", help="The guests' clocks count their instructions: times can be repeated.")
    ] = False,
    select: Annotated[str, typer.Option("-k", help="Only these tests in the guest.")] = "",
    docs: Annotated[bool, typer.Option("--docs", help="Bring docs/benchmarks.md up to date.")] = False,
) -> None:
    """Run the lab; exits with 1 if anything failed, or a count is worse than it may be."""
    if docs and (short or only_layers or not measure):
        raise typer.BadParameter("the page is for the results of a whole run", param_hint="--docs")
    options = ["--options", mount, "--upper", upper, "--latency", str(latency)]
    jobs: list[Job] = []
    options += ["--only-layers"] if only_layers else ["--only-best"] if short else []
    if measure:
        jobs += [measuring(version, options, 90 * _MINUTE) for version in nfs or (["4.2"] if short else ["4.2", "3"])]
    if race:
        jobs.append(racing(latency, 20 * _MINUTE))
    if neighbour:
        jobs.append(neighbouring(1 if short else 5, 40 * _MINUTE))
    if test:
        jobs += testing(select, 30 * _MINUTE, thorough=not short or bool(select))
        if not select:
            jobs.append(rebooting(3 * _MINUTE))
    try:
        with Lab(str(ROOT), str(build), _say, instructions=instructions) as lab:
            failures = _run(lab, kernel, str(build), jobs, short=short, only_layers=only_layers, docs=docs)
    except (LabError, OSError) as error:
        failures = [str(error)]
    for failure in failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False)
    raise typer.Exit(1 if failures else 0)


def _run(  # noqa: PLR0913 - each says what the run is for
    lab: Lab, series: str, build: str, jobs: list[Job], *, short: bool, only_layers: bool, docs: bool
) -> list[str]:
    path = f"{build}/results{'-short' if short else ''}{'-layers' if only_layers else ''}.json"
    before = Results.load(path) if os.path.exists(path) else Results()
    kernel = fetch(series, f"{build}/kernels")
    console.print(f"{kernel.release}: building the guest …")
    lab.build(kernel, SHORT if short else FULL)
    failures = [str(failure) for failure in lab.run(jobs)]
    left = [f"{home}/results.json" for job in jobs for home in job.results]
    about = {"versions": _versions(), "command": _command(series)}
    runs = [run.model_copy(update=about) for one in left if os.path.exists(one) for run in Results.load(one).runs]
    if runs:
        fresh = Results(runs=runs)
        failures += thresholds.check(fresh, short=short, only_layers=only_layers)
        _report(before, fresh, path, docs=docs and not failures)
    return failures


def _report(before: Results, fresh: Results, path: str, *, docs: bool) -> None:
    results = before.merge(fresh)
    results.dump(path)
    for run in fresh.runs:
        console.print(report.summary(run))
    Path(path).with_suffix(".md").write_text(report.render(results), "utf-8")
    plots.plot(results, Path(path).with_suffix(".svg"))
    if docs:
        page = ROOT / "docs" / "benchmarks.md"
        page.write_text(report.insert(page.read_text("utf-8"), results), "utf-8")
        plots.plot(results, page.with_suffix(".svg"))


def _command(series: str) -> str:
    """What repeats this run."""
    given = sys.argv[1:]
    if "--kernel" in given:
        at = given.index("--kernel")
        del given[at : at + 2]
    kernel = [] if series == SERIES[0] else [f"KERNEL={series}"]
    return " ".join(["make lab", *kernel, *([f'ARGS="{shlex.join(given)}"'] if given else [])])


def _versions() -> dict[str, str]:
    """Of what the guest was made from."""
    return {
        "promoterd": __version__,
        "Python": platform.python_version(),
        "QEMU": _number(commands.run(QEMU, "--version")),
        "nfs-utils": _number(commands.run("mount.nfs", "-V")),
    }


def _number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "unknown"


def _say(job: str, line: str) -> None:
    if line.startswith("LAB ") or job.startswith(("tests", "reboot")):
        console.print(f"{time.monotonic() - _begun:6.1f} s  {job:<12} {line}", markup=False)


if __name__ == "__main__":
    sys.exit(app())
