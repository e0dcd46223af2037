"""`python -m course_lib`: refuse a Python that is too old in plain words, then hand over to the command line."""

import os
import sys

OLDEST = (3, 11)


def too_old(version, arguments):
    """What to tell somebody whose Python is older than the course needs. Also runs on Python 2, hence its manner."""
    command = "-m course_lib " + " ".join(arguments)
    folders = os.environ.get("PATH", "").split(os.pathsep)
    newer = ["python3.%d" % minor for minor in (13, 12, 11)]
    found = [name for name in newer if any(os.path.exists(os.path.join(folder, name)) for folder in folders)]
    if found:
        mend = "This machine has a newer one; type:  %s %s" % (found[0], command)
    elif sys.platform == "win32":
        mend = "Install Python 3.13 from python.org, then type:  py -3.13 " + command
    elif sys.platform == "darwin":
        mend = "Install Python 3.13 from python.org, then type:  python3.13 " + command
    else:
        mend = "Install one (Debian, Ubuntu: apt install python3 python3-venv), then type:  python3 " + command
    return "The course needs Python %d.%d or newer, this is %d.%d.\n%s" % (OLDEST + tuple(version[:2]) + (mend,))


if __name__ == "__main__":
    if sys.version_info < OLDEST:
        sys.exit(too_old(sys.version_info, sys.argv[1:]))
    from course_lib.cli import main

    sys.exit(main())
