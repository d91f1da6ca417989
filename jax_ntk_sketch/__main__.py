"""Run the command line: `python -m jax_ntk_sketch`, see `jax_ntk_sketch.cli`."""

import sys

from jax_ntk_sketch.cli import main

if __name__ == "__main__":
    sys.exit(main())
