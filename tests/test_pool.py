"""Workers of several GPUs, and runs on a Ray cluster.

The cluster is one of this machine alone, if ray is installed (pip install ray).
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from gpu_worker import name_gpu

from qa_lib.reports import plans
from qa_lib.settings.params import UserError
from qa_lib.store import runs
from qa_lib.training import pool, study, train

# ---- GPUs ----


@pytest.mark.parametrize(
    "count, visible, gpus",
    [
        (0, None, []),
        (2, None, ["0", "1"]),
        (2, "4,GPU-a", ["4", "GPU-a"]),
        (1, "4,-1,6", ["4"]),
        (0, "", []),
    ],
)
def test_gpus_have_their_names_in_the_environment(count, visible, gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert pool.list_gpus() == gpus


def test_each_worker_has_a_gpu_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "list_gpus", lambda: ["4", "GPU-a"])
    team = pool.Processes(3)
    try:
        answers = [team.submit(name_gpu, tmp_path, 3) for _ in range(3)]
        assert sorted(answer.result() for answer in answers) == ["4", "4", "GPU-a"]
    finally:
        team.stop()


@pytest.mark.parametrize("gpus, runs_to_train, workers", [(1, 5, 1), (4, 5, 4), (4, 2, 2)])
def test_a_study_trains_one_run_on_each_gpu(gpus, runs_to_train, workers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert study.default_workers([SimpleNamespace(threads="cuda")] * runs_to_train) == workers


# ---- a Ray cluster ----


@pytest.fixture
def cluster(monkeypatch):
    """Start a Ray cluster of this machine when it is asked for, and stop it after the test."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    yield
    if pool.connect.cache_info().currsize:
        pool.Cluster(pool.connect_to_cluster()).stop()


def test_a_cluster_gives_the_same_numbers_as_this_process(tiny, store, cluster):
    p = tiny(experiments=["untuned"], train_rows=16)
    table = study.run(p, plans.plan, workers=2, live=False)
    assert list(table.trained) == ["now", "now"]
    assert not list(runs.RUNS.glob(".cluster*"))
    spec = plans.plan(p)[-1]
    record = runs.find_record(spec)
    (store / "runs").rename(store / "apart")
    alone = train.train(spec, progress=lambda line: None)
    assert alone["history"] == record["history"]


def test_a_mistake_on_a_cluster_is_one_sentence_too(tiny, cluster, monkeypatch):
    p = tiny(learning_rate=1e30, train_rows=16)
    with pytest.raises(UserError, match="the loss is .* lower learning_rate"):
        study.run(p, plans.plan, workers=2, live=False)
    monkeypatch.setattr(pool, "_sees", lambda mark: False)
    with pytest.raises(UserError, match="does not see .*QA_RUNS must name a folder"):
        study.run(p, plans.plan, workers=2, live=False)


def test_a_cluster_that_is_not_there_is_refused_before_any_training(tiny, monkeypatch):
    assert pool.connect_to_cluster() is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="the package ray is not installed"):
        study.run(tiny(), plans.plan, live=False)

    def init(address, **rest):
        raise ConnectionError

    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=None)
    for name, module in (
        ("ray", SimpleNamespace(init=init)),
        ("ray.util", SimpleNamespace()),
        ("ray.util.scheduling_strategies", strategies),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(UserError, match="RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there"):
        study.run(tiny(), plans.plan, live=False)
    assert not list(runs.RUNS.glob("exbert/*/metrics.json"))


@pytest.mark.parametrize("threads, size", [(1, 24), (4, 6), (32, 1), ("cuda", 3)])
def test_a_cluster_takes_as_many_runs_as_its_machines_hold(threads, size):
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 24.0, "GPU": 3.0})
    assert pool.count_runs_at_once(ray, SimpleNamespace(threads=threads)) == size
