"""The one exception that commands turn into a line on stderr and exit code 2."""


class InputError(Exception):
    """Bad input: the message says in one line what is wrong, where, and what to do."""


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an error's message, for a message of one line.

    Args:
        error: any exception.
        limit: the most characters returned.

    Returns:
        The first non-empty line, cut to `limit` characters, or the class name where the message is empty.
    """
    if isinstance(error, UnicodeError):  # its text quotes the whole file
        return "it is not UTF-8 text"
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def system_reason(error: BaseException) -> str:
    """The operating system's words for an OSError, without number and file name; the first line of any other error."""
    return getattr(error, "strerror", None) or first_line(error)
