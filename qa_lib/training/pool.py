"""Workers that train several runs at once: processes of this machine, or machines of a Ray cluster.

`Processes` and `Cluster` both have `submit(function, spec, …)`, which returns a Future, and
`stop()`. Ray is an extra of the package, and RAY_ADDRESS names the cluster. The machines of a
cluster need this checkout, its environment and the folder of runs under the same paths, as on a
shared disk. Records, checkpoints and the weights of parents are read and written there.
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
    """Worker processes of this machine. Each has one GPU, of which several may have the same."""

    def __init__(self, workers: int):
        context = get_context("spawn")
        # Python's tracker of semaphores frees those of a stopped study, and would tell of each.
        silent = "ignore::UserWarning:multiprocessing.resource_tracker"
        asked = os.environ.get("PYTHONWARNINGS", "")
        if silent not in asked:
            os.environ["PYTHONWARNINGS"] = f"{asked},{silent}" if asked else silent
        self.pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_set_up_worker,
            initargs=(context.Value("i", 0), list_gpus()),
        )
        self.submitted: list[Future] = []

    def submit(self, function: Callable, spec: Spec, *rest) -> Future:
        """Call the function in a worker process; return the Future of its result.

        A terminal sends Ctrl-C to every process, and the study answers it. A worker that starts
        here inherits that the signal is held back, so that it never sees one.
        """
        held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            future = self.pool.submit(function, spec, *rest)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        self.submitted.append(future)
        return future

    def stop(self):
        """End the workers; a run that is going on is ended with its worker."""
        done = all(future.done() for future in self.submitted)
        if not done and self.pool._processes:
            for process in self.pool._processes.values():
                process.terminate()  # a run goes on from its checkpoint the next time
        self.pool.shutdown(wait=done, cancel_futures=True)


def list_gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch  # here, because importing it is slow and workers may need none of it

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[:count]


def _set_up_worker(started, gpus: list[str]):
    """Set up a worker process.

    It sees one GPU, since every run is trained on the first that its process sees. CUDA reads that
    when it is first used, which is later. started: a shared counter of the workers; gpus: of
    list_gpus.

    A worker ends with the study's process, even where that one was killed: no worker may write
    beside the next study. Where nobody reads the output any more, a worker's run ends as the study
    does.
    """
    command_line.print_in_any_locale()
    command_line.watch_output()
    with started.get_lock():
        number = started.value
        started.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
    """Wait for the end of the parent process, then end this one."""
    parent_process().join()
    os._exit(1)


class Cluster:
    """The machines of a Ray cluster; each run asks for its threads, or for one GPU."""

    def __init__(self, ray):
        self.ray = ray

    def submit(self, function: Callable, spec: Spec, *rest) -> Future:
        """Call the function on a machine of the cluster; return the Future of its result."""
        need = {"num_gpus": 1} if spec.threads == "cuda" else {"num_cpus": spec.threads}
        task = self.ray.remote(max_retries=0, **need)(_return_user_error)
        return task.remote(function, spec, *rest).future()

    def stop(self):
        """Leave the cluster, which ends the tasks of this study."""
        self.ray.shutdown()
        connect.cache_clear()


def _return_user_error(function: Callable, *args):
    """Return what the function returns, or its UserError.

    Ray would wrap an error that is raised into its traceback.
    """
    try:
        return function(*args)
    except UserError as e:
        return e


def connect_to_cluster():
    """Return ray, connected to the cluster that RAY_ADDRESS names; None where it names none."""
    address = os.environ.get("RAY_ADDRESS")
    return connect(address) if address else None


@cache
def connect(address: str):
    """Return ray, connected to the cluster at an address.

    Raises UserError where ray is not installed, where no cluster answers, or where one of its
    machines cannot run the study.
    """
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError:
        raise UserError(
            "RAY_ADDRESS is set, and the package ray is not installed: pip install ray, "
            "or unset RAY_ADDRESS"
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
            f"RAY_ADDRESS={address}: no Ray cluster answers there, or it refuses "
            f"({type(e).__name__}); start one with `ray start --head`, say RAY_AUTH_MODE=token "
            "where it asks for one, or unset RAY_ADDRESS"
        ) from None
    try:
        _check_machines(ray, NodeAffinitySchedulingStrategy)
    except UserError:
        ray.shutdown()
        raise
    return ray


def _check_machines(ray, strategy):
    """Raise UserError where a machine of the cluster lacks the study or the folder of runs.

    strategy: Ray's NodeAffinitySchedulingStrategy, which sends a task to a given machine.
    """
    mark = runs.RUNS / f".cluster.{os.getpid()}"
    runs.write(mark, "")
    task = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            name = node["NodeManagerHostname"]
            there = strategy(node["NodeID"], soft=False)
            try:
                sees_mark = ray.get(task.options(scheduling_strategy=there).remote(mark))
            except ray.exceptions.RayError as e:
                raise UserError(
                    f"the cluster's machine {name} cannot run the study ({type(e).__name__}): "
                    f"it needs {ROOT} and the same Python environment"
                ) from None
            if not sees_mark:
                raise UserError(
                    f"the cluster's machine {name} does not see {runs.RUNS}; QA_RUNS must name a "
                    "folder that all of them share"
                )
    finally:
        mark.unlink()


def _sees(mark: Path) -> bool:
    """Return whether this machine sees a file."""
    return mark.exists()


def count_runs_at_once(ray, spec: Spec) -> int:
    """Return how many runs like this one a cluster takes at once."""
    resources = ray.cluster_resources()
    if spec.threads == "cuda":
        return max(1, int(resources.get("GPU", 0)))
    return max(1, int(resources["CPU"] // spec.threads))
