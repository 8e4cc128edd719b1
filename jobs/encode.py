"""Entry point of a Ray job: runs `manyminds encode SUITE|FILE --store DIR ...` on the job's cluster."""

import sys

from harness.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "encode")
    main()
