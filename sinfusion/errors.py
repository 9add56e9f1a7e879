"""The one exception a user is meant to see. Everything else that escapes is a bug.

The command line prints its message as one sentence and exits with code 2.
"""


class SinfusionError(Exception):
    """Something the user asked for cannot be done; the message says what was wrong and what would be right."""


def option_name(name: str) -> str:
    """What sentences call a setting, on the command line and in Python: --max-side for max_side."""
    return "--" + name.replace("_", "-")
