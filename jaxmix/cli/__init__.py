"""The command line: parse, call a workflow, print. Imports nothing heavy before a command runs."""

from __future__ import annotations

from jaxmix.cli.app import main

__all__ = ["main"]
