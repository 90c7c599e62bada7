"""Memory of a training process on a CPU: what is freed goes back to the system, and the peak."""

import contextlib
import ctypes
import gc
import platform
import resource
from pathlib import Path

from transformers import TrainerCallback

RETURN_EVERY = 4  # training steps after which freed memory is returned; more often is slower


def return_freed():
    """Return to the system what this process freed. Without glibc nothing happens.

    Batches of many sizes leave the heap in pieces that are too small for the next one.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class FreedMemory(TrainerCallback):
    """Returns freed memory while a run is trained on a CPU."""

    def on_step_end(self, args, state, control, **kwargs):
        """Return it after every few steps."""
        if state.global_step % RETURN_EVERY == 0:
            return_freed()


def begin_anew():
    """Return what earlier runs of this process freed, and forget their peak.

    So peak memory is the run's own. Without glibc freed memory stays, and without /proc the peak
    counts the runs before.
    """
    gc.collect()  # the Trainer of an earlier run holds its model in a cycle of references
    return_freed()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def read_peak() -> float:
    """Return the most memory that this process has had since `begin_anew`, in MB.

    Without /proc it is the peak since the process began, and a worker's includes its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        (peak,) = [line for line in lines if line.startswith("VmHWM:")]
        return int(peak.split()[1]) / 1024
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # bytes there, and else KB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
