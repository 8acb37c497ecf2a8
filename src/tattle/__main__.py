"""The front door: the first of our code that the archive runs. It leads to the hook or the shell.

Its syntax suits every Python 3, so that an old one gets a line to read and not a SyntaxError.
Short, since each login compiles it, and twice: zipimport does so to find a module and to run it.
"""

import os
import sys

PYTHON = "/usr/bin/python3"  # as in the first line of the file
HOT = ("pam", "spool", "hook")  # what a login needs, in the order of who imports whom


def main():
    # type: () -> int
    """Return the exit status."""
    if sys.version_info < (3, 9):
        found = sys.executable, sys.version_info[0], sys.version_info[1]
        sys.stderr.write("tattle: needs Python 3.9 or newer, and %s is %d.%d\n" % found)
        return 78
    if "PAM_SERVICE" in os.environ:
        try:
            load_once(globals()["__loader__"])  # type: ignore[no-untyped-call]
            from tattle.hook import main as run
        except Exception:  # no memory, a damaged file, an upgrade between two looks at it
            if "again" not in sys._xoptions:
                os.environ.pop("LC_CTYPE", None)  # Python's own; it would stand behind pam_exec's
                # Without a slash in argv[0], Python would look for itself in PATH, and for
                # pyvenv.cfg in the current folder, which may be a user's.
                os.execv(PYTHON, [PYTHON, "-ISXutf8", "-Xagain"] + sys.argv)
            return 70  # pam_exec logs the status
    else:
        from tattle.cli import main as run
    return run(sys.argv[1:])


def load_once(archive):  # type: ignore[no-untyped-def]
    """Import from the archive what a login needs, compiling each module only once."""
    importer = type(archive)
    if importer.__name__ == "zipimporter":  # else pip installed us
        folder = os.path.join(archive.archive, "tattle")
        hot = HOT + ("process",) * (len(sys.argv) > 1)  # for --wait
        for loader, name in [(archive, "tattle")] + [(importer(folder), name) for name in hot]:
            full = name if loader is archive else "tattle." + name
            module = sys.modules[full] = type(sys)(full)
            module.__loader__ = loader
            module.__path__ = [folder]
            exec(loader.get_code(name), module.__dict__)


if __name__ == "__main__":
    sys.exit(main())
