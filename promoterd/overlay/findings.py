"""What there is to say of a mount: how grave, on which option, and the way out."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """``refuse`` makes a mount unfit for the backend; the others are for people to read."""

    REFUSE = "refuse"
    WARN = "warn"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands against a backend on a mount, or that a user should know, and the way out."""

    severity: Severity
    option: str
    message: str
    remedy: str


def refuse(option: str, message: str, remedy: str) -> Finding:
    """A finding that makes the mount unfit."""
    return Finding(Severity.REFUSE, option, message, remedy)


def warn(option: str, message: str, remedy: str) -> Finding:
    """A finding that refuses nothing, but tells of a loss."""
    return Finding(Severity.WARN, option, message, remedy)


def info(option: str, message: str, remedy: str) -> Finding:
    """A finding that is good to know."""
    return Finding(Severity.INFO, option, message, remedy)
