"""Entry points for `ray job submit`, and the suites they run."""
