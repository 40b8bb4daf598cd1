"""Becomes slurmstepd with one change: orphans of a job's tasks are its own, so that the job's end also ends them.

Without cgroups SLURM finds a job's processes by descent alone, loses those that changed parent, and can then wait
in COMPLETING for ever. The cluster puts a copy of this file, with an interpreter line, where slurmd finds it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

PR_SET_CHILD_SUBREAPER = 36  # kept across exec, not given to children

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    slurmstepd = shutil.which("slurmstepd")
    assert slurmstepd is not None
    os.execv(slurmstepd, [slurmstepd, *sys.argv[1:]])
