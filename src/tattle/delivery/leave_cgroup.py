"""The deliverer's first act: leave the login's cgroup, which its user may freeze or kill.

The kernel takes 10 ms for it without taking the CPU: in a thread, while all else is imported.
Imported first: nothing here but what the interpreter has loaded by then.
"""

import _signal  # type: ignore[import-not-found]  # signal itself takes milliseconds
import _thread
import gc
import posix

from tattle.login.process import leave_cgroups, reset_timer_slack

# For all that comes before a lock: nobody watches a process that has none. Long enough to unpack
# where the CPU's credits are spent.
LOCK_SECONDS = 300.0
# Python can't undo the idle class that a caller of su may have set.
IONICE = ("/usr/bin/ionice", "--class=best-effort", "--classdata=7")
LEAVING = _thread.allocate_lock()  # held until we have left


def start_leaving() -> None:
    """Start the thread, and let the caller import in the meantime.

    The imports leave no garbage, and to look for it takes 8 ms: whoever has imported enables that.
    """
    end_within(LOCK_SECONDS)
    gc.disable()
    reset_timer_slack()  # Python's threads wait for one another by timers
    LEAVING.acquire()
    try:
        _thread.start_new_thread(leave, ())
    except RuntimeError:  # the user's cgroup may hold no more threads
        leave()


def leave() -> None:
    """Leave the login's cgroup and its I/O class."""
    try:
        leave_cgroups()
        posix.waitpid(posix.posix_spawn(IONICE[0], [*IONICE, f"--pid={posix.getpid()}"], {}), 0)
    except OSError:
        pass  # no ionice, or no process left for it
    finally:
        LEAVING.release()


def end_within(seconds: float) -> None:
    """Have the kernel end this process after that many seconds; 0: no longer.

    By SIGALRM's default action, which needs no Python code, and works in a frozen cgroup.
    """
    _signal.setitimer(_signal.ITIMER_REAL, seconds)  # first: the one before may be about to end
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGALRM])
