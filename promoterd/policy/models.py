"""The whole policy as frozen models.

Pure: nothing here reads a file, a clock or a mount. Every key has a description, which ``docs/policy.md`` repeats.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator

from promoterd.policy.copying import CopyData
from promoterd.policy.fields import AbsolutePath, Listen, Name, SocketPath, host_and_port
from promoterd.policy.mounts import AUTO, Expected, HeatPolicy, Limits, MountPolicy, RequestBudget
from promoterd.policy.rules import Rule
from promoterd.policy.section import Section, empty_is_default
from promoterd.policy.warming import WarmPolicy
from promoterd.units import InvalidValueError, shown

__all__ = [
    "AUTO",
    "ControlPolicy",
    "CopyData",
    "DaemonLimits",
    "Expected",
    "HeatPolicy",
    "Limits",
    "LogPolicy",
    "MetricsPolicy",
    "MountPolicy",
    "Policy",
    "RequestBudget",
    "Rule",
    "Section",
    "WarmPolicy",
]


class ControlPolicy(Section):
    """Who may control the running daemon, and where."""

    socket: SocketPath = Field(
        default="/run/promoterd/control.sock", description="The Unix socket that `promoterd status` and others talk to."
    )
    group: Name | None = Field(
        default=None, description="A group whose members may use the socket too; otherwise only root."
    )


class MetricsPolicy(Section):
    """Metrics for Prometheus."""

    listen: Listen = Field(
        default="127.0.0.1:9909", description="Address and port of `/metrics`; port 0 takes any free one; or `off`."
    )

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None when there are to be no metrics."""
        return None if self.listen is None else host_and_port(self.listen)


class LogPolicy(Section):
    """What the daemon writes about its work."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="`json`: one object per line. `console`: for people. `auto`: `console` on a terminal, else `json`.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important events to write."
    )


class DaemonLimits(Section):
    """What the daemon may do at once, all mounts together."""

    promotions: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Directories worked on at once on all mounts. Each mount may have one in any case, so that none "
        "waits for another; the rest is shared evenly, within each mount's own `concurrency`.",
    )


class Policy(Section):
    """Everything that the daemon is told."""

    state_dir: AbsolutePath = Field(
        default="/var/lib/promoterd", description="Where the ledger is kept; on a local disk."
    )
    control: Annotated[ControlPolicy, BeforeValidator(empty_is_default)] = Field(
        default_factory=ControlPolicy, description="Who may control the daemon."
    )
    metrics: Annotated[MetricsPolicy, BeforeValidator(empty_is_default)] = Field(
        default_factory=MetricsPolicy, description="Metrics for Prometheus."
    )
    log: Annotated[LogPolicy, BeforeValidator(empty_is_default)] = Field(
        default_factory=LogPolicy, description="What is logged, and how."
    )
    limits: Annotated[DaemonLimits, BeforeValidator(empty_is_default)] = Field(
        default_factory=DaemonLimits, description="What all mounts together may do at once."
    )
    mounts: list[MountPolicy] = Field(min_length=1, description="The overlays.")

    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant, one line each; filled by :func:`promoterd.policy.load_policy`."""
        return self._warnings

    @field_validator("mounts")
    @classmethod
    def _mount_points_differ(cls, mounts: list[MountPolicy]) -> list[MountPolicy]:
        points = [mount.mountpoint for mount in mounts]
        for at, point in enumerate(points):
            if point in points[:at]:
                raise InvalidValueError(f"{shown(point)} a second time", "each mount point once")
        return mounts
