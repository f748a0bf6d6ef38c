"""One rule: which directories it governs, and what may be done to them."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from promoterd.policy import globs
from promoterd.policy.fields import GlobText
from promoterd.policy.section import Section
from promoterd.units import Duration, InvalidValueError


class Rule(Section):
    """What may be done to the directories that match a path."""

    path: GlobText = Field(
        description="Which directories: a glob relative to the mount. `a/**` is everything below `a`, `a` is `a` only."
    )
    promote: Literal["hot", "always", "never"] = Field(
        default="hot",
        description="`hot`: when its heat reaches the threshold. `always`: without waiting for heat. "
        "`never`: not at all, nor anything below it.",
    )
    growing: bool = Field(
        default=False,
        description="New releases appear in it, so it is never completed (directories below it may be).",
    )
    threshold: float | None = Field(
        default=None, gt=0, description="Heat from which on it counts as hot; nothing here means the mount's own."
    )
    recursive: bool = Field(
        default=True,
        description="Complete the directories inside it along with it, each under its own rule. `false`: refuse a "
        "directory while one of its child directories is not complete.",
    )
    max_entries: int = Field(
        default=200_000,
        ge=1,
        le=100_000_000,
        description="Refuse a directory that has more entries than this, everything below it counted.",
    )
    min_age: Duration = Field(
        default=3600.0,
        description="Touch nothing whose content or attributes changed on the server within this time (by this node's "
        "clock, so keep both in step): a release may be half published.",
    )
    writers: Literal["none", "any"] = Field(
        default="any",
        description="`none` promises that nobody writes there through the overlay, which allows reopening while it is "
        "mounted. `any`: reopening waits until it is unmounted.",
    )
    unlisted: Literal["hide", "refuse"] = Field(
        default="refuse",
        description="Names that the server resolves but does not list (`.snapshot`, `.zfs`) vanish when a directory is "
        "complete. `refuse`: leave such a directory alone. `hide`: accept that.",
    )
    hardlinks: Literal["refuse", "break"] = Field(
        default="refuse",
        description="Files with several names, on an overlay that cannot keep them linked. `refuse`: leave the "
        "directory alone. `break`: copy each name up as a file of its own.",
    )
    watched: Literal["refuse", "ignore"] = Field(
        default="refuse",
        description="Directories on which another process holds an inotify watch, which would go dead. `refuse`: leave "
        "them alone. `ignore`: promote them all the same.",
    )
    chain: bool = Field(
        default=True,
        description="Backend `layer`: complete it too, its other children left to the server, when a directory below "
        "it is completed. Then a path through it costs the server nothing. `false`: only for its own heat.",
    )
    xattrs: Literal["copy", "skip"] = Field(
        default="copy",
        description="Backend `layer`: ACLs, capabilities and other extended attributes. `copy`: take them over, which "
        "asks the server for each entry where it has any (NFS 4.2, or 3 without `noacl`). `skip`: leave them out; "
        "refused where the server may have ACLs or capabilities.",
    )
    recheck: Duration = Field(
        default=600.0,
        gt=0,
        description="How often a complete directory is compared with the server.",
    )
    verify: Duration = Field(
        default=86_400.0,
        gt=0,
        description="How often each file of a complete directory is compared with the server: one that was rewritten "
        "in place has not changed its directory.",
    )

    @field_validator("growing")
    @classmethod
    def _growing_is_never_completed(cls, growing: bool, info: ValidationInfo) -> bool:
        if growing and info.data.get("promote") == "always":
            raise InvalidValueError("true beside promote: always", "promote: hot or never, as it is never completed")
        return growing

    @property
    def may_promote(self) -> bool:
        """Whether a directory that this rule governs may become complete."""
        return self.promote != "never" and not self.growing

    @property
    def glob(self) -> globs.Glob:
        """What the rule governs: what its path matches, and for ``never`` everything below that too (I3)."""
        return globs.compiled_glob(self.path, whole_trees=self.promote == "never")
