"""The `manyminds` command."""

from harness.cli.main import main as main
