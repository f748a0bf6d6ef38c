"""promoterd keeps the hot directories of a live overlay complete in local storage."""

__version__ = "0.1.0"
