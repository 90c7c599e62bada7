"""Several runs at once: in processes of this machine, or on the machines of a Ray cluster (RAY_ADDRESS, extra [ray]).

Each has `submit(function, spec, …)`, a Future of what the function returns, and `stop()`. The machines of a cluster need this
checkout, its environment and the folder of runs under the same paths, as on a shared disk: records, checkpoints and the weights of
parents are read and written there.
"""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path

from qa_lib.settings import command_line
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs


class Processes:
    """Worker processes of this machine."""

    def __init__(self, workers: int):
        self.pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_worker
        )
        self.given: list[Future] = []

    def submit(self, function: Callable, spec: Spec, *rest) -> Future:
        self.given.append(self.pool.submit(function, spec, *rest))
        return self.given[-1]

    def stop(self):
        done = all(f.done() for f in self.given)
        for process in () if done else (self.pool._processes or {}).values():
            process.terminate()  # a run goes on from its checkpoint the next time
        self.pool.shutdown(wait=done, cancel_futures=True)


def _worker():
    """In a worker process: Ctrl-C is the study's to answer; a study that was killed takes its workers with it, so that
    none writes beside the next study. Output that nobody reads any more ends a worker's run as it ends the study."""
    command_line.print_in_any_locale()
    command_line.watch_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: parent_process().join() or os._exit(1), daemon=True).start()


class Cluster:
    """The machines of a Ray cluster; each run asks for its threads, or for one GPU."""

    def __init__(self, ray):
        self.ray = ray

    def submit(self, function: Callable, spec: Spec, *rest) -> Future:
        need = {"num_gpus": 1} if spec.threads == "cuda" else {"num_cpus": spec.threads}
        return (
            self.ray.remote(max_retries=0, **need)(_answer).remote(function, spec, *rest).future()
        )

    def stop(self):
        self.ray.shutdown()  # which ends the tasks of this study
        connect.cache_clear()


def _answer(function: Callable, *args):
    """What the function returns; a UserError as it is, since Ray would wrap it into its traceback."""
    try:
        return function(*args)
    except UserError as e:
        return e


def cluster():
    """Ray, connected to the cluster that RAY_ADDRESS names; None where it names none."""
    return connect(address) if (address := os.environ.get("RAY_ADDRESS")) else None


@cache
def connect(address: str):
    """Raises UserError where ray is not installed, where no cluster answers, or where one of its machines cannot run the study."""
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError:
        raise UserError(
            "RAY_ADDRESS is set, and the package ray is not installed: pip install ray, or unset RAY_ADDRESS"
        ) from None
    shared = {
        "PYTHONPATH": str(ROOT),
        "QA_RUNS": str(runs.RUNS.resolve()),
        "QA_RECORDS": str(runs.RECORDS.resolve()),
    }
    try:
        ray.init(address, runtime_env={"env_vars": shared}, logging_level="ERROR")
    except Exception as e:  # Ray raises many kinds; the user needs one sentence
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there, or it refuses ({type(e).__name__}); start one "
            "with `ray start --head`, say RAY_AUTH_MODE=token where it asks for one, or unset RAY_ADDRESS"
        ) from None
    mark = runs.RUNS / f".cluster.{os.getpid()}"
    runs.write(mark, "")
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        for node in (n for n in ray.nodes() if n["Alive"]):
            name, here = (
                node["NodeManagerHostname"],
                NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            try:
                sees = ray.get(look.options(scheduling_strategy=here).remote(mark))
            except ray.exceptions.RayError as e:
                raise UserError(
                    f"the cluster's machine {name} cannot run the study ({type(e).__name__}): it needs {ROOT} and the "
                    "same Python environment"
                ) from None
            if not sees:
                raise UserError(
                    f"the cluster's machine {name} does not see {runs.RUNS}; QA_RUNS must name a folder that all of "
                    "them share"
                )
    except UserError:
        ray.shutdown()
        raise
    finally:
        mark.unlink()
    return ray


def _sees(mark: Path) -> bool:
    return mark.exists()


def size(ray, spec: Spec) -> int:
    """Runs like this one that a cluster takes at once."""
    every = ray.cluster_resources()
    return max(
        1, int(every.get("GPU", 0) if spec.threads == "cuda" else every["CPU"] // spec.threads)
    )
