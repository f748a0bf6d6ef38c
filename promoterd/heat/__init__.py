"""Signals in, ranking out."""
