"""Errors for the user. Each has one sentence: argument, expected, got, what to do."""

import difflib
from collections.abc import Iterable


class EffaceError(Exception):
    """Something outside the call went wrong: a file, a disk, a model. The command line exits with 1."""

    exit_code = 1


class UsageError(EffaceError, ValueError):
    """An argument is wrong. The command line exits with 2."""

    exit_code = 2


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the closest known names, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return (f"did you mean {' or '.join(map(repr, close))}? " if close else "") + f"known: {', '.join(known)}"
