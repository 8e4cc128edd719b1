"""ManyMinds: a benchmark harness for personalised reward models."""

from harness.machine import ensure_home_folder

ensure_home_folder()  # before anything imports Ray or MLflow
