"""Becomes another program that dies with its parent: ``python exec_child.py PROGRAM [ARGUMENT ...]``.

A file of its own and free of imports from the package, because it runs before every worker. A ``preexec_fn`` would do
the same, but is not safe in a parent that has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent = int(os.environ.pop("LAUNCHER_PARENT_PID"))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("launcher: the agent ended before its worker started")
    # SLURM sends it to every process of a job, not only to who listens; a program may still set a handler of its own.
    # Until here it was blocked, from before this process was made.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        print(f"launcher: cannot run {sys.argv[1]!r}: {error.strerror}", file=sys.stderr)
        sys.exit(127)
