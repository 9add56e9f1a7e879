"""`python -m sinfusion.train INPUT` is `sinfusion train INPUT`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
