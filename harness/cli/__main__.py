"""`python -m harness.cli` is the `manyminds` command too."""

from harness.cli import main

if __name__ == "__main__":
    main()
