"""Allows ``python -m promoterd``."""

from promoterd.cli import main

if __name__ == "__main__":
    main()
