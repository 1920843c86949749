"""A user's mistake: how it is raised, worded and told, the same way by every command of the project."""

import argparse
import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


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


def shown(name: object) -> str:
    """A file's name as a line of UTF-8: what is neither, or would move a terminal's cursor, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are UserErrors; a flag must be given whole.

    prog: what it calls itself, unless it was started as `bjax COMMAND`.
    """

    def __init__(self, prog: str, description: str | None = None, **more):
        prog = sys.argv[0] if sys.argv[0].startswith("bjax ") else prog
        super().__init__(prog=prog, description=description, allow_abbrev=False, **more)

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ")
        flags = [flag for action in self._actions for flag in action.option_strings]
        hint = nearest(re.split("[= ]", unknown)[0], flags) if unknown != message else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def positive(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an argument that is some of the known words, separated by commas."""

    def words(text: str) -> list[str]:
        given = [word.strip() for word in text.split(",") if word.strip()]
        for word in given:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r}: expected some of {', '.join(known)}{nearest(word, known)}")
        return given

    return words


def new_file(text: str) -> Path:
    """The type of an argument that names a file to be written, before the work for it begins."""
    if (path := Path(text).expanduser()).is_dir():
        raise argparse.ArgumentTypeError(f"{path}: is a folder; name a file")
    new_folder(str(path.parent))
    return path


def new_folder(text: str) -> Path:
    """The type of an argument that names a folder to write into, which need not be there."""
    path = Path(text).expanduser()
    lowest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not lowest.is_dir():
        raise argparse.ArgumentTypeError(f"{lowest}: is a file; name a folder")
    if not os.access(lowest, os.W_OK):
        raise argparse.ArgumentTypeError(f"{lowest}: may not be written; name another folder")
    return path


def command(
    run: Callable[[list[str]], int | None],
    argv: list[str] | None = None,
    *,
    name: Callable[[], str] = lambda: "bjax",
) -> int:
    """Runs a command and returns its exit code: what `run` returns (None: 0); 2: a user's mistake, in one line on
    stderr; 130: Ctrl-C; 141, as of what SIGPIPE ends, in silence: nobody reads its output any more (`| head`).

    run: a function of the arguments, those of the command line where `argv` is None. A KeyboardInterrupt that it
    raises with a text is told with that. name: what the process calls itself in these lines.
    """
    try:
        try:
            return run(sys.argv[1:] if argv is None else argv) or 0
        finally:
            sys.stdout.flush()  # Python would do it at its end, and complain there of a closed pipe
    except UserError as error:
        print(f"{name()}: {shown(error)}", file=sys.stderr)  # one line, whatever the text that it repeats
        return 2
    except KeyboardInterrupt as error:
        print(f"{name()}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it complains all the same
        return 141


def as_command(run: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """`run` as the `main(argv=None)` of a command: `command` of it, which returns the exit code."""

    @functools.wraps(run)
    def main(argv: list[str] | None = None) -> int:
        return command(run, argv)

    return main
