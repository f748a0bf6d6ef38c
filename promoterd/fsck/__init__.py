"""``fsck``: what is on disk, compared with what it must be and with the server; judging is apart from reading."""
