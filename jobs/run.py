"""What a Ray job runs: `manyminds run SUITE --store DIR ...` on the cluster that the job belongs to."""

import sys

from harness.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
