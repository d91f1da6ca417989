"""The command line: `python -m jax_ntk_sketch COMMAND`.

A command is a module with a one-line `SUMMARY`, `add_arguments(parser)` and
`run(args)`, which is listed in `_COMMANDS`. The exit status is 0, or 2 after a mistake
of the user (one line on stderr), or 130 after Ctrl-C. Whatever file or folder a user
names is overwritten only with --overwrite.
"""

import argparse
import sys
from collections.abc import Sequence

from jax_ntk_sketch import __version__
from jax_ntk_sketch.cli import compare, fit, predict
from jax_ntk_sketch.cli.options import HelpFormatter, OneLineParser, UsageError

__all__ = ["main"]

_PROGRAM = "python -m jax_ntk_sketch"
_DESCRIPTION = "Random features of neural tangent kernels: compare them, fit, predict."
_COMMANDS = {"compare": compare, "fit": fit, "predict": predict}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
      argv: the arguments; None for those of the process.
    """
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(arguments or ["--help"])
        args.run(args)
    except UsageError as error:
        # A message of the library may span lines; the promise is one.
        print(f"{_PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=_PROGRAM, description=_DESCRIPTION)
    version = f"jax_ntk_sketch {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            formatter_class=HelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser
