"""The command line: `python -m jax_ntk_sketch [command] [options]`.

A command is a module with a one-line `SUMMARY`, `add_arguments(parser)` and
`run(args)`; it joins by its name in `_COMMANDS`. Without a command the first one
runs. Exit status: 0, 2 after a user's mistake (one line on stderr), 130 after
Ctrl-C.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from jax_ntk_sketch.cli.arguments import HelpFormatter, OneLineParser, UsageError

__all__ = ["main"]

_PROGRAM = "python -m jax_ntk_sketch"
_COMMANDS = {
    "fc": "jax_ntk_sketch.cli.fully_connected",
    "images": "jax_ntk_sketch.cli.images",
    "fit": "jax_ntk_sketch.cli.fit",
    "predict": "jax_ntk_sketch.cli.predict",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; None for those of the process.

    Returns:
      The exit status.
    """
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(_with_command(arguments))
        args.run(args)
    except UsageError as error:
        # A message of the library may span lines; the promise is one.
        print(f"{_PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse, after --help
        return int(stop.code or 0)
    return 0


def _with_command(arguments: list[str]) -> list[str]:
    if arguments and not arguments[0].startswith("-"):
        return arguments
    return [next(iter(_COMMANDS)), *arguments]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=_PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    default = next(iter(_COMMANDS))
    for name, path in _COMMANDS.items():
        module = importlib.import_module(path)
        usual = " (the default command)" if name == default else ""
        subparser = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=f"{module.SUMMARY}{usual}",
            epilog=f"Commands: {', '.join(_COMMANDS)}.",
            formatter_class=HelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser
