"""Where the policy is, and what of it the command line needs."""

import os

from promoterd.backends import base as backends
from promoterd.errors import MountNotFound, PolicyError
from promoterd.heat import base as heat
from promoterd.overlay.mountinfo import is_at_or_below
from promoterd.paths import display, relative_to_mount
from promoterd.policy import ControlPolicy, MountPolicy, Policy, load_policy
from promoterd.policy.source import Source, SourceError

DEFAULT_CONFIG = "/etc/promoterd/policy.yaml"
_MOST = 1 << 20


def read_policy(config: str | None) -> Policy:
    """The policy, its backends and heat sources known. Raises PolicyError."""
    return load_policy(
        config or DEFAULT_CONFIG,
        known_backends=["auto", *backends.names()],
        known_heat_sources=["auto", *heat.names()],
    )


def policy_for_acting(config: str | None) -> Policy:
    """As :func:`read_policy`, for a command that acts without a daemon. Raises PolicyError."""
    try:
        return read_policy(config)
    except PolicyError as error:
        if os.path.exists(config or DEFAULT_CONFIG):
            raise
        hint = "nothing is touched that no policy allows: write one, and name it with --config"
        raise PolicyError(f"there is no policy: {error.message}", hint=hint) from error


def socket_path(config: str | None, socket: str | None) -> str:
    """The control socket: as typed, or as the policy says, also if that is bad elsewhere; or else the default.

    Raises PolicyError where a policy was named and cannot be read.
    """
    if socket is not None:
        return os.path.abspath(socket)
    try:
        with open(config or DEFAULT_CONFIG, encoding="utf-8-sig", errors="replace") as file:
            said = Source(file.read(_MOST)).value(("control", "socket"))
    except (OSError, ValueError):
        if config is not None:
            read_policy(config)
        said = None
    except SourceError:
        said = None
    return said if isinstance(said, str) and said.startswith("/") else ControlPolicy().socket


def state_directory(config: str | None) -> str:
    """Where the ledger is; the default where there is no policy and none was named. Raises PolicyError."""
    if config is None and not os.path.exists(DEFAULT_CONFIG):
        return str(Policy.model_fields["state_dir"].default)
    return read_policy(config).state_dir


def mount_for(policy: Policy, path: bytes) -> tuple[MountPolicy, bytes]:
    """The mount of the policy that an absolute path lies on, and the path inside it. Raises MountNotFound."""
    found = [mount for mount in policy.mounts if is_at_or_below(path, mount.mountpoint_bytes)]
    if not found:
        names = ", ".join(display(mount.mountpoint_bytes) for mount in policy.mounts)
        raise MountNotFound(f"{display(path)} lies on no mount that the policy names", hint=f"the policy names {names}")
    mount = max(found, key=lambda candidate: len(candidate.mountpoint_bytes))
    return mount, relative_to_mount(path, mount.mountpoint_bytes)
