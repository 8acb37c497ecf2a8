"""The entry point: runs the hook, the deliverer or the command line.

The `#!` line runs these bytes, and so does `python3 tattle`. Each login compiles them: keep them
few. The syntax suits every Python, so that an old one gets a line to read and not a SyntaxError.
"""

import posix
import sys

BUILD = "none"  # pack.py fills in shiv's build id
CACHE = "/var/cache/tattle"


def only_root_writes(directory):
    # type: (str) -> bool
    status = posix.lstat(directory)
    return status.st_uid == 0 and status.st_mode & 0o170022 == 0o40000


def main(archive):  # type: ignore[no-untyped-def]
    """Run what was asked for from the unpacked build, else from the archive. Return the status."""
    if sys.version_info < (3, 9):
        found = sys.executable, sys.version_info[0], sys.version_info[1]
        sys.stderr.write("tattle: needs Python 3.9 or newer, and %s is %d.%d\n" % found)
        return 78
    # Through its descriptor the archive stays this build's in an upgrade. By path: without /proc.
    places = ["/proc/self/fd/%d/site-packages" % archive.fileno(), archive.name + "/site-packages"]
    try:
        if all(map(only_root_writes, ("/", "/var", "/var/cache", CACHE))):
            tag = sys.implementation.cache_tag
            places.insert(0, "%s/%s-%s/site-packages" % (CACHE, BUILD, tag))
    except OSError:
        pass  # nothing is unpacked yet
    under_pam = b"PAM_SERVICE" in posix.environ
    if not under_pam:
        import _signal  # type: ignore[import-not-found]  # signal itself takes milliseconds

        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C ends it without a traceback
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)  # ignored by the `#!` line, for the hook
    for place in places:
        sys.path.insert(0, place)
        try:
            if under_pam:
                from tattle.login.hook import main as run
            elif sys.argv[1:2] == ["deliver"]:
                from tattle.delivery.leave_cgroup import start_leaving

                start_leaving()
                from tattle.delivery.deliver import main as run
            else:
                from tattle.shell.cli import main as run
            break
        except Exception:  # the unpacked build is damaged, or being removed
            if place == places[-1]:
                if under_pam:
                    return 70  # pam_exec logs the status
                raise
            sys.path.remove(place)
            for name in [name for name in sys.modules if name.split(".")[0] == "tattle"]:
                del sys.modules[name]
    return run(sys.argv[1:])


if __name__ == "__main__":
    if sys.argv[0] == "-c":
        del sys.argv[0]
        sys.exit(main(f))  # type: ignore[name-defined, no-untyped-call]  # noqa: F821  # the `#!` line opened it
    sys.exit(main(open(sys.argv[0], "rb")))  # type: ignore[no-untyped-call]  # noqa: SIM115
