"""A user's mistake, told in one line."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """What the user can mend. The text is one line that names the flag, file or shape and says what to do."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` for the choice closest to ``value``, or nothing where none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def choose(flag: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` when it is one of ``choices``.

    Raises:
        UserError: naming the flag, all choices and the nearest one.
    """
    choices = list(choices)
    if value in choices:
        return value
    raise UserError(f"{flag} {value!r} is unknown{nearest(value, choices)}; choose from: {', '.join(choices)}")


def run_script(main: Callable[[list[str]], None]) -> None:
    """Run a script's ``main`` on the command line's arguments and end the process.

    The exit code is 0, 2 after a user's mistake or on a full disk (one line on stderr), 130 after Ctrl-C or SIGTERM.
    Anything else is a defect of ours and shows its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
        if sys.stdout is not None:  # None: started with stdout closed
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written is left behind", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, `| head` for one
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be printed would fail again at the end
        print(f"error: {error.filename or 'the output'} can't be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
