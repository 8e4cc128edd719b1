"""Ctrl-C that Python swallows: a command that waits for Ray ends nevertheless."""

import signal
import subprocess
import sys
import time

from harness.registry import PROJECT_ROOT

SWALLOWS = """
import sys, time
from harness.cli import interrupts
from harness.on_ray import watch

interrupts.SWALLOWED_SECONDS = 0.5
swallowed = []

def look():
    try:
        time.sleep(0.2)
    except KeyboardInterrupt:
        if swallowed:
            raise
        swallowed.append(True)

watch._NodeWatch.ask = lambda self: None
watch.MAX_SILENT_SECONDS = 1000
watch.POLL_SECONDS = 0.01
with interrupts.raising_interrupts() as received:
    print("waiting", flush=True)
    try:
        watch.call_watched(lambda: time.sleep(60), look)
    except interrupts.Interrupted:
        print("ended", len(swallowed), received, flush=True)
"""


def test_a_swallowed_interrupt_is_raised_again():
    process = subprocess.Popen([sys.executable, "-c", SWALLOWS], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == f"ended 1 [{int(signal.SIGINT)}]\n"
    process.kill()
    process.wait()
