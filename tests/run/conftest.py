"""The stranger's network of the command line's tests."""

from tests.cli.conftest import network

__all__ = ["network"]
