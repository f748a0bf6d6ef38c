"""What can go wrong with the lab, each with the way out."""


class LabError(Exception):
    """The lab cannot be built or run; the message says why and what to do."""


class GuestFailed(LabError):
    """The guest died, hung, or did not say how its job ended."""
