"""What this process must be allowed to do before a command begins."""

from promoterd.errors import NotPermitted
from promoterd.overlay import probe


def require_privilege() -> None:
    """Raise NotPermitted without the capability that overlay attributes and reconfiguring need."""
    if "CAP_SYS_ADMIN" not in probe.host().capabilities:
        raise NotPermitted(needed="CAP_SYS_ADMIN")
