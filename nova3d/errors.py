"""The one exception that means "the input is at fault"; scripts turn it into one line and exit code 2."""


class InputError(Exception):
    """Bad input: says in one line what is wrong, where, and what to do about it."""
