"""Tests over two boots."""
