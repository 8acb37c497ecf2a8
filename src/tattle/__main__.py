"""The front door: the first of our code that the archive runs.

Its syntax suits every Python 3, so that an old one gets a line to read and not a SyntaxError.
"""

import os
import sys


def main():
    # type: () -> int
    """Under PAM accept the event, then deliver it; from a shell do what the command line says."""
    if sys.version_info < (3, 9):
        sys.stderr.write(
            "tattle: needs Python 3.9 or newer, and %s is %d.%d\n"
            % (sys.executable, sys.version_info[0], sys.version_info[1])
        )
        return 78
    if "PAM_SERVICE" not in os.environ:
        from tattle.cli import main as command_line

        return command_line()
    try:
        from tattle.hook import accept

        spool, record = accept(sys.argv[1:])  # the login goes on; only a deliverer comes back
        from tattle.deliver import in_background

        return in_background(spool, record)
    except Exception as error:
        from tattle import EX_SOFTWARE, log

        log("a defect of tattle's: %s: %s" % (type(error).__name__, error))
        return EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())
