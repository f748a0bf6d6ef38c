"""Commands that need no daemon and change nothing: ``check``, ``doctor``, ``demo``."""

import os
from typing import TYPE_CHECKING

from promoterd.cli.output import console_for_stdout, say, say_json, text_of, warn
from promoterd.cli.settings import DEFAULT_CONFIG, read_policy
from promoterd.errors import PolicyError, PromoterdError, UnfitMount

if TYPE_CHECKING:
    from promoterd.policy import MountPolicy


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


def examine_mounts(mount: str | None, config: str | None, *, as_json: bool) -> int:
    """Print what the doctor finds; 0 where every mount that was looked at is fit for a backend that marks.

    Raises PolicyError where a policy was named and cannot be read.
    """
    from promoterd.backends.base import load
    from promoterd.doctor import examine, render

    report = examine(None if mount is None else os.fsencode(mount), _known(config))
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


def _known(config: str | None) -> dict[bytes, "MountPolicy"]:
    """What the policy says of each mount; nothing where there is none, or where it is bad and nobody named it."""
    if config is None and not os.path.exists(DEFAULT_CONFIG):
        return {}
    try:
        policy = read_policy(config)
    except PolicyError as error:
        if config is not None:
            raise
        warn(f"warning: what the policy says is left out: {error.message}")
        return {}
    return {mount.mountpoint_bytes: mount for mount in policy.mounts}


def run_demonstration(*, backend: str, as_json: bool) -> int:
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
    return run_demo(backend=backend, as_json=as_json)
