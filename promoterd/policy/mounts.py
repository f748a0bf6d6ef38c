"""One overlay and its rules; answers which rule governs a path."""

from collections.abc import Collection
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from promoterd.policy import globs
from promoterd.policy.copying import CopyData
from promoterd.policy.fields import AbsolutePath, Component, Name, Rate
from promoterd.policy.near import either, nearest
from promoterd.policy.rules import Rule
from promoterd.policy.section import Section, empty_is_default
from promoterd.policy.warming import WarmPolicy, lists_alone
from promoterd.policy.windows import WINDOW, WindowText
from promoterd.units import Allowed, Duration, InvalidValueError, Share, ShareOrCount, ShareOrSize, shown

AUTO: Final = "auto"


class HeatPolicy(Section):
    """What counts as hot on a mount, and how it is noticed."""

    source: Name = Field(
        default=AUTO,
        description="Where heat comes from: `inotify`, `fanotify`, `nfs-trace`, a registered name, or `auto` for "
        "the best ones that kernel and mount give.",
    )
    half_life: Duration = Field(default=600.0, gt=0, description="Time in which heat falls to half.")
    threshold: float = Field(default=4.0, gt=0, description="Heat from which on a directory counts as hot.")
    settle: Duration = Field(
        default=10.0,
        description="How long a directory that was listed has to be left in peace, with all around it that was listed "
        "too, before that counts: till then it may be a walk over the tree (`find`, a backup), which is no heat. `0s`: "
        "everything counts at once, walks too.",
    )
    payback: Duration = Field(
        default=604_800.0,
        gt=0,
        description="Promote for heat only what saves the server, within this time and if use goes on like this, more "
        "requests than its promotion costs.",
    )
    max_directories: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="How many directories are kept in mind; the coldest are forgotten first.",
    )
    max_watches: ShareOrCount = Field(
        default=Share(0.5),
        description="How many inotify watches to use: a number, or a share of the kernel's limit "
        "(`fs.inotify.max_user_watches`).",
    )

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str, info: ValidationInfo) -> str:
        return _registered(source, (info.context or {}).get("heat_sources"))


class Expected(Section):
    """What the administrator knows of the lookups on a mount, where ``auto`` cannot find it out."""

    misses_per_entry: float = Field(
        default=0.0,
        ge=0,
        description="Lookups of names that do not exist which reach the server, for each entry of the directories that "
        "the rules name, in the time in which a directory stays as it is.",
    )
    found_per_entry: float = Field(
        default=1.0, ge=0, description="Lookups of names that do exist, counted in the same way."
    )


class RequestBudget(Section):
    """How many requests promotion may make in how much time."""

    requests: int = Field(
        ge=1,
        le=10**12,
        description="So many requests, as the daemon reckons them; rechecks count, and are made all the same.",
    )
    window: Duration = Field(default=3600.0, gt=0, description="In any time of this length.")


class Limits(Section):
    """What promotion may cost a mount."""

    entries_per_second: Rate = Field(
        default=5000,
        ge=1,
        le=10_000_000,
        description="Entries copied up, or read by `prime`, in a second, all directories together.",
    )
    adaptive: bool = Field(
        default=True,
        description="On NFS, ask the server less as soon as it answers more slowly than usual, and more again when it "
        "does not. `false`: only the fixed limits hold.",
    )
    max_outstanding: int = Field(
        default=6,
        ge=1,
        le=256,
        description="At most so many requests to the server wait for their answers at the same time.",
    )
    request_budget: RequestBudget | None = Field(
        default=None,
        description="How many requests promotion may make in how much time; when they are used up it waits. Nothing "
        "here: no such budget.",
    )
    recheck_requests_per_second: Rate = Field(
        default=100,
        ge=1,
        le=10_000_000,
        description="What rechecks and verifications may ask the server in a second; when that is not enough for the "
        "rules' intervals, they become longer.",
    )
    concurrency: int = Field(default=2, ge=1, le=64, description="Directories worked on at once.")
    min_free_space: ShareOrSize = Field(
        default=Share(0.05), description="Stop copying up when the upper file system has less space than this left."
    )
    min_free_inodes: ShareOrCount = Field(
        default=Share(0.05), description="Stop copying up when the upper file system has fewer inodes than this left."
    )
    max_inodes: ShareOrCount = Field(
        default=Share(0.5),
        description="Promote nothing more when complete directories take up so many inodes of the upper file system.",
    )
    max_promoted_entries: Rate = Field(
        default=None,
        ge=1,
        le=10**12,
        description="Promote nothing more when complete directories have so many entries, all together.",
    )
    start_spread: Duration = Field(
        default=300.0,
        description="On NFS, each machine begins with what all do at their start (rechecks, `warm`, rules with "
        "`promote: always`) at a moment of its own within this time. What is hot is promoted at once.",
    )
    stuck_after: Duration = Field(
        default=30.0, gt=0, description="A file system call that takes longer than this makes the mount count as stuck."
    )


class MountPolicy(Section):
    """One overlay: how it is promoted, and what of it."""

    mountpoint: AbsolutePath = Field(description="Where the overlay is mounted.")
    backend: Name = Field(
        default=AUTO,
        description="How directories are completed: `layer`, `opaque`, `finalize`, `prime` (completes none, keeps them "
        "known), `observe` (a dry run), a registered name, or `auto` for the best that the mount is fit for.",
    )
    heat: Annotated[HeatPolicy, BeforeValidator(empty_is_default)] = Field(
        default_factory=HeatPolicy, description="What counts as hot here."
    )
    expect: Annotated[Expected, BeforeValidator(empty_is_default)] = Field(
        default_factory=Expected, description="What `auto` is to know of the lookups here, to choose by."
    )
    limits: Annotated[Limits, BeforeValidator(empty_is_default)] = Field(
        default_factory=Limits, description="What promotion may cost here."
    )
    maintenance: Annotated[list[WindowText], Allowed(f"a list of windows, each with {WINDOW}")] = Field(
        default=[],
        description="The only times in which anything is promoted by itself, by this machine's clock. Rechecks go on, "
        "and what is wanted by hand is promoted, at any time. Nothing here: always.",
    )
    copy_data: CopyData | None = Field(
        default=None,
        description="Backend `layer`: which files carry their data in the layer. Nothing here: none do, and data that "
        "is there goes.",
    )
    warm: Annotated[WarmPolicy | None, BeforeValidator(lists_alone)] = Field(
        default=None,
        description="Directories to promote from the start on, after what is hot: heat lists of runs that need them. "
        "A list of their paths will do.",
    )
    activation_interval: Duration = Field(
        default=60.0,
        gt=0,
        description="At most one activation (a reconfigure that changes nothing, but empties the overlay's name cache) "
        "in this time.",
    )
    quiet_period: Duration = Field(
        default=30.0,
        description="How long nothing may have been written to a directory before it is reopened while mounted.",
    )
    scratch: Component = Field(
        default=".promoterd", description="Name of the daemon's own directory at the root of the overlay."
    )
    rules: list[Rule] = Field(
        min_length=1, description="What to promote; the first rule that matches a path governs it."
    )

    @field_validator("mountpoint")
    @classmethod
    def _named_once(cls, mountpoint: str, info: ValidationInfo) -> str:
        seen: dict[str, None] | None = (info.context or {}).get("mountpoints")
        if seen is not None and mountpoint in seen:
            raise InvalidValueError(f"{shown(mountpoint)} a second time", "each mount point once")
        if seen is not None:
            seen[mountpoint] = None
        return mountpoint

    @field_validator("backend")
    @classmethod
    def _backend_is_known(cls, backend: str, info: ValidationInfo) -> str:
        return _registered(backend, (info.context or {}).get("backends"))

    @property
    def mountpoint_bytes(self) -> bytes:
        """The mount point as the kernel spells it."""
        return self.mountpoint.encode("utf-8", "surrogateescape")

    @property
    def scratch_bytes(self) -> bytes:
        """The name of the scratch directory as the kernel spells it."""
        return self.scratch.encode("utf-8", "surrogateescape")

    def rule_index_for(self, path: bytes) -> int | None:
        """As :meth:`rule_for`; the rule's place in the policy, from 0."""
        if path.partition(b"/")[0] == self.scratch_bytes:
            return None
        text = globs.decoded(path)
        return next((index for index, rule in enumerate(self.rules) if rule.glob.matches(text)), None)

    def rule_for(self, path: bytes) -> Rule | None:
        """The first rule that matches; None means that the path is never touched, as for the scratch directory."""
        index = self.rule_index_for(path)
        return None if index is None else self.rules[index]

    def threshold_for(self, rule: Rule) -> float:
        """Heat from which on a directory under this rule counts as hot."""
        return self.heat.threshold if rule.threshold is None else rule.threshold

    def may_promote(self, path: bytes) -> bool:
        """Whether the rule that governs the path allows to complete it (I3)."""
        rule = self.rule_for(path)
        return rule is not None and rule.may_promote

    def may_promote_below(self, path: bytes) -> bool:
        """Whether the path or anything below it might be promoted; True when in doubt, so a walk can stop at False."""
        if path.partition(b"/")[0] == self.scratch_bytes:
            return False
        if self.may_promote(path):
            return True
        text = globs.decoded(path)
        for rule in self.rules:
            if rule.may_promote and rule.glob.can_reach(text):
                return True
            if not rule.may_promote and rule.glob.covers_below(text):
                return False
        return False

    def is_growing(self, path: bytes) -> bool:
        """Whether new entries are expected in this directory."""
        rule = self.rule_for(path)
        return rule is not None and rule.growing


def _registered(name: str, known: Collection[str] | None) -> str:
    if known is None or name == AUTO or name in known:
        return name
    choices = sorted({AUTO, *known})
    raise InvalidValueError(shown(name), either(choices), nearest(name, choices))
