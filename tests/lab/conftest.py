"""What runs in the guest is not for the host: ``make lab`` takes it there."""

collect_ignore = ["guest"]
