"""A user's mistake: how it is raised, worded and told, the same way by every command of the project."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """One line that names the file, key or value, what was expected, and the way out.

    Command lines print it without a traceback and exit with code 2; any other exception is a bug and keeps its
    traceback.
    """


def nearest(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ " (did you mean WORD?)" of the known word that is most like `word`; empty where none is."""
    near = closest(word, known, cutoff=cutoff)
    return f" (did you mean {near}?)" if near else ""


def closest(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word that is most like `word`; None where none is, by difflib's ratio of at least `cutoff`."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)), None)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are UserErrors; a flag must be given whole."""

    def __init__(self, prog: str, description: str, **more):
        super().__init__(prog=prog, description=description, allow_abbrev=False, **more)

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ")
        flags = [flag for action in self._actions for flag in action.option_strings]
        hint = nearest(unknown.split("=")[0].split()[0], flags) if unknown != message else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def command(run: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: what `run` returns (None: 0); 2: a user's mistake, in one line on
    stderr; 130: Ctrl-C; 0 where nobody reads its output any more (`| head`).

    run: a function of the arguments, those of the command line where `argv` is None.
    """
    try:
        return run(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"bjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python would complain about it once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
