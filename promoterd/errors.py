"""Everything that can go wrong in a way that a user must hear about.

One hierarchy: the docstring of a class is its message (a format string over the keyword arguments it is raised with),
``exit_code`` is what the command line exits with, and ``hint`` is the way out. Exit codes are documented in
``docs/operations.md``; a code once given to a class stays.
"""

from typing import ClassVar


class PromoterdError(Exception):
    """{message}"""  # noqa: D400 - a format string, not a sentence

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, *, hint: str | None = None, **fields: object) -> None:
        self.fields = {"message": message, **fields} if message is not None else fields
        template = (type(self).__doc__ or "{message}").strip()
        self.message = message if message is not None else template.format(**fields)
        self.hint = hint if hint is not None else self._usual_hint()
        super().__init__(self.message)

    def _usual_hint(self) -> str | None:
        """The class's hint; none where it speaks of something that this error does not name."""
        try:
            return None if self.default_hint is None else self.default_hint.format(**self.fields)
        except KeyError:
            return None

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(PromoterdError):
    """{message}"""  # noqa: D400

    exit_code = 2


class PolicyError(PromoterdError):
    """{message}"""  # noqa: D400

    exit_code = 3


class MountNotFound(PromoterdError):
    """No overlay is mounted at {mountpoint}."""

    exit_code = 4
    default_hint = "mount it first; `promoterd doctor` lists the overlays of this machine"


class UnfitMount(PromoterdError):
    """The overlay at {mountpoint} is not fit for the backend {backend}: {reason}."""

    exit_code = 5
    default_hint = "`promoterd doctor {mountpoint}` says what to mount instead"


class Refused(PromoterdError):
    """{path} is refused: {reason}."""

    exit_code = 6


class NotPermitted(PromoterdError):
    """This needs {needed}, which this process does not have."""

    exit_code = 7
    default_hint = "run it as root (CAP_SYS_ADMIN in the initial user namespace)"


class KernelTooOld(PromoterdError):
    """This kernel lacks {needed}."""

    exit_code = 7


class AlreadyLocked(PromoterdError):
    """{upper} is being changed by another process: {holder}."""

    exit_code = 8
    default_hint = "only one writer may change an upper layer; stop the other one first"


class DaemonUnreachable(PromoterdError):
    """No promoterd answers on {socket}."""

    exit_code = 9
    default_hint = "start it with `systemctl start promoterd`, or `promoterd run --config FILE`"
    hint_if_it_goes: ClassVar[str] = "what it had begun it finishes or undoes at its next start"


class Deferred(PromoterdError):
    """{path} cannot be reopened while the overlay is live: {reason}."""

    exit_code = 10
    default_hint = "unmount the overlay and run `promoterd reopen --offline`"


class MountGone(PromoterdError):
    """The overlay at {mountpoint} is gone or was replaced; work on it has stopped."""

    exit_code = 4


class TripWire(PromoterdError):
    """Marking on {mountpoint} has stopped: {reason}."""

    exit_code = 11
    default_hint = "find out why, then `promoterd resume {mountpoint}`"


class LedgerError(PromoterdError):
    """The ledger {path} cannot be used: {reason}."""

    exit_code = 12


class DemoFailed(PromoterdError):
    """{message}"""  # noqa: D400

    exit_code = 13


class WatchLimitReached(PromoterdError):
    """The kernel grants no more inotify watches: the limit of this user is {limit}."""

    exit_code = 14
    default_hint = "raise fs.inotify.max_user_watches, or lower `max_watches` in the policy"


class InstanceLimitReached(PromoterdError):
    """The kernel grants no more inotify instances: the limit of this user is {limit}."""

    exit_code = 14
    default_hint = "raise fs.inotify.max_user_instances (or LimitNOFILE, where file descriptors are what is short)"


class HeatListError(PromoterdError):
    """{message}"""  # noqa: D400 - a format string, not a sentence

    exit_code = 15
    default_hint = "docs/operations.md says what a list looks like; `promoterd record` and `heat merge` write such"


class RecordingFailed(PromoterdError):
    """{message}"""  # noqa: D400 - a format string, not a sentence

    exit_code = 16


class NoHeatSource(PromoterdError):
    """The heat source {source} cannot be had: {reason}."""

    exit_code = 14
    default_hint = "another can be named in the policy (`heat: source`)"


class InternalError(PromoterdError):
    """Internal error: {what}."""

    exit_code = 70
    default_hint = "please report it, with what PROMOTERD_DEBUG=1 shows"


class CommandNotFound(PromoterdError):
    """There is no program {command}."""

    exit_code = 127


class Interrupted(PromoterdError):
    """Interrupted: {what}."""

    exit_code = 130
