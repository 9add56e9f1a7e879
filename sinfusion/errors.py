"""The one exception a user is meant to see. Everything else that escapes is a bug.

The command line prints its message as one sentence and exits with code 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping


class SinfusionError(Exception):
    """Something the user asked for cannot be done; the message says what was wrong and what would be right."""


class SettingError(SinfusionError):
    """One about settings: `{sigma_max}` in its text is sigma_max in Python and --sigma-max on the command line."""

    def __init__(self, text: str):
        self.text = text
        super().__init__(re.sub(r"\{(\w+)\}", r"\1", text))

    def on_command_line(self, called: Mapping[str, str]) -> str:
        """The sentence with the names that settings have there. called: those that are not named after the setting."""
        return re.sub(r"\{(\w+)\}", lambda name: called.get(name[1]) or option_name(name[1]), self.text)


def option_name(name: str) -> str:
    """What sentences call a setting, on the command line and in Python: --max-side for max_side."""
    return "--" + name.replace("_", "-")
