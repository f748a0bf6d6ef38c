"""Commands that need no daemon and change nothing: ``check``, ``doctor``, ``demo``."""

import os

from promoterd.cli.output import console_for_stdout, say, say_json, text_of, warn
from promoterd.cli.settings import read_policy
from promoterd.errors import PromoterdError, UnfitMount


def check_policy(file: str, *, as_json: bool) -> None:
    """Print the effective policy; what is doubtful in it goes to standard error. Raises PolicyError."""
    from promoterd.policy import dump_policy, effective_policy

    policy = read_policy(file)
    if as_json:
        say_json({"file": file, "policy": effective_policy(policy), "warnings": list(policy.warnings)})
        return
    for doubt in policy.warnings:
        warn(f"warning: {doubt}")
    say(dump_policy(policy))


def examine_mounts(mount: str | None, *, as_json: bool) -> int:
    """Print what the doctor finds; 0 where every mount that was looked at is fit for a backend that marks."""
    from promoterd.backends.base import load
    from promoterd.doctor import examine, render

    report = examine(None if mount is None else os.fsencode(mount))
    if as_json:
        say_json(report.to_dict())
    else:
        console = console_for_stdout()
        render(report, console)
        say(text_of(console))
    fit = all(
        any(verdict.fit and load(verdict.backend).marks for verdict in overlay.verdicts) for overlay in report.overlays
    )
    return 0 if fit else UnfitMount.exit_code


def run_demonstration(*, as_json: bool) -> int:
    """Raises PromoterdError where something that the demonstration needs is not installed."""
    try:
        from promoterd.demo.run import run_demo
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("promoterd"):
            raise
        raise PromoterdError(
            f"the demonstration needs {error.name}, which is not installed",
            hint="`make demo` installs it, or `pip install 'promoterd[demo]'`",
        ) from error
    return run_demo(as_json=as_json)
