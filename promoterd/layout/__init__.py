"""The mounts below an overlay with a metadata layer: planned, written down for systemd or fstab, and tried out."""
