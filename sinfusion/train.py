"""`python -m sinfusion.train INPUT` is `sinfusion train INPUT`."""

import sys

if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

from .training.session import train

# `import sinfusion.train` sets that attribute of the package to what stands here: the function, not this module.
sys.modules[__name__] = train  # type: ignore[assignment]
