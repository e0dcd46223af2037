"""Reinforcement learning for language model alignment: the course's tested implementations.

Importing the package is cheap: torch is loaded by the submodule that needs it.
"""

import os

__version__ = "0.1.0"


def smoke():
    """True when COURSE_SMOKE=1 asks every experiment to shrink to a quick rehearsal."""
    return os.environ.get("COURSE_SMOKE", "") not in ("", "0")
