"""ManyMinds: a benchmark harness for personalised reward models."""

import os

from harness.machine import ensure_home_folder

ensure_home_folder()  # before anything imports Ray or MLflow
# Threads of torch wait for each other in a loop before they sleep. Where other programs need the cores, a long loop costs
# more than it saves: small steps on two cores took 40 s beside four busy programs with 300,000 rounds, which is the
# library's default, and 10 s with 2,000; alone, no difference could be measured.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
