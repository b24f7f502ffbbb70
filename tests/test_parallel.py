import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from scoreflow import configure, data, draw, likelihood, samplers, terminal
from scoreflow.data import load
from scoreflow.evaluators.density import make_log_prob
from scoreflow.runs import parallel
from tests import tiny
from tests.truth import PROCESSES, TOY


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def _ragged(x):
    """A loop whose length depends on the data: the smallest k with x + k >= 10, and where it ends."""

    def one(x):
        return jax.lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] + 1, c[1] + 1), (x, 0))

    return jax.vmap(one)(x)


def test_map_devices_is_pmap():
    x = jax.random.uniform(jax.random.key(0), (8, 3), maxval=9.0)[:, 0]
    ours = parallel.map_devices(_ragged)(parallel.shard(np.asarray(x)))
    theirs = jax.pmap(_ragged)(x.reshape(4, 2))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.reshape(-1)), ours, theirs)


def test_map_devices_broadcasts_and_splits():
    seen = []

    def fn(whole, rows):
        seen.append((whole.shape, rows.shape))
        return rows * whole.sum()

    mapped = parallel.map_devices(fn, broadcast=(0,))(jnp.ones(3), jnp.arange(8.0))
    np.testing.assert_array_equal(mapped, 3 * np.arange(8.0))
    assert seen == [((3,), (2,))]


def test_likelihood_does_not_depend_on_the_number_of_devices():
    """Four devices, each looping on its own, against the same solve without a mesh."""
    process = PROCESSES["vp"]
    x = jnp.asarray(TOY.sample(np.random.default_rng(0), 8), jnp.float32)[:, None]
    keys = jax.random.split(jax.random.key(1), 8)

    def solve(keys, x):
        return likelihood.log_prob(process, TOY.score(process), terminal.prior(process), keys, x, t_min=1e-3)

    four, one = parallel.map_devices(solve)(keys, x), jax.jit(solve)(keys, x)
    np.testing.assert_allclose(four.logp, one.logp, atol=2e-4)
    np.testing.assert_array_equal(four.nfe, one.nfe)


JOBS = [
    ({}, False),
    ({"SLURM_NTASKS": "4"}, False),  # of sbatch: this process was not started by srun
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod of its own
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, True),
]


@pytest.mark.parametrize("variables, joins", JOBS)
def test_processes_join_where_a_scheduler_started_several(variables, joins, monkeypatch):
    """And leave it to jax.distributed to find the others."""
    for name in {name for row, _ in JOBS for name in row} | {"SCOREFLOW_COORDINATOR"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    parallel.initialize()
    assert calls == ([((), {"heartbeat_timeout_seconds": 30})] if joins else [])


def test_devices_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"training.batch_size = 6 must be a multiple of the 4 devices"):
        parallel.check_divides(6, "training.batch_size")


def test_gather_and_replicate_round_trip():
    tree = {"a": np.arange(8.0), "b": np.ones((8, 2))}
    for put in (parallel.shard, parallel.replicate):
        jax.tree.map(np.testing.assert_array_equal, parallel.gather(put(tree)), tree)


@pytest.mark.slow
def test_padding_of_the_last_evaluation_batch_changes_nothing():
    """10 examples in batches of 4 against batches of 20: the same log-densities."""
    config = tiny.digits()
    experiment = configure.experiment(config, "vp_digits")
    params = experiment.init(jax.random.key(0))
    x = np.asarray(experiment.space.encode(params, jax.random.key(1), experiment.data.test.x[:10]))
    keys = jax.random.split(jax.random.key(2), 10)

    def log_densities(size):
        evaluation = configure.evaluation(config)
        evaluation = evaluation._replace(options=evaluation.options._replace(batch_size=size))
        return make_log_prob(evaluation.context(experiment, params)).solve("some", keys, x).logp

    np.testing.assert_allclose(log_densities(4), log_densities(20), rtol=1e-4)


def test_samples_do_not_depend_on_the_number_of_devices(monkeypatch):
    experiment = configure.experiment(tiny.digits(), "vp_digits")
    params = experiment.init(jax.random.key(0))
    four = draw.make_draw(experiment, 8)(params, jax.random.key(1), 8).x
    monkeypatch.setattr(parallel, "mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
    one = draw.make_draw(experiment, 8)(params, jax.random.key(1), 8).x
    assert (four == one).mean() > 0.99  # a pixel on the edge of a level may round either way


@pytest.mark.parametrize("name", ["euler_maruyama", "predictor_corrector", "dpm_solver_pp_2m", "adaptive"])
def test_a_sample_depends_on_its_seed_and_not_on_its_batch(name):
    """10 samples in batches of 4, of 8 and of 12: the same, and the first are those of a shorter draw."""
    options = {
        "predictor_corrector": {"predictor": "ancestral", "corrector_steps": 1, "snr": 0.16},
        "adaptive": {"rtol": 1e-3, "atol": 1e-3, "max_steps": 100},
    }
    config = tiny.digits(sampler={"name": name, **options.get(name, {})})
    experiment = configure.experiment(config, "vp_digits")
    experiment = experiment._replace(space=experiment.space._replace(decode=lambda params, key, x: x))
    params = experiment.init(jax.random.key(0))
    draws = [draw.make_draw(experiment, size)(params, jax.random.key(1), 10).x for size in (4, 8, 12)]
    draws.append(np.concatenate([draw.make_draw(experiment, 4)(params, jax.random.key(1), 3).x, draws[0][3:]]))
    for other in draws[1:]:
        np.testing.assert_allclose(other, draws[0], rtol=1e-4, atol=1e-4)
    assert np.abs(draws[0][1:] - draws[0][:-1]).reshape(9, -1).max(1).min() > 0.1  # no two are the same


@pytest.mark.parametrize("many", [False, True])
def test_noise_of_many_keys_is_that_of_each(many):
    keys, like = jax.random.split(jax.random.key(0), 5), jnp.zeros((5, 3, 2))
    key = keys if many else keys[0]
    noise = samplers.normal(samplers.fold(key, 7), like)
    if many:
        alone = [jax.random.normal(jax.random.fold_in(k, 7), (3, 2)) for k in keys]
    else:
        alone = jax.random.normal(jax.random.fold_in(key, 7), (5, 3, 2))
    np.testing.assert_array_equal(noise, jnp.stack(alone) if many else alone)


def test_batches_are_split_without_change():
    whole = data.batch(load.digits().train, 0, 3, 8)
    jax.tree.map(np.testing.assert_array_equal, parallel.gather(parallel.shard(whole)), whole)


def test_ranks_of_open_mpi_5_are_found_by_its_own_variables():
    """As `mpirun` 5.0.11 sets them; those of version 4 are left to JAX, and so is a job of one."""
    here = {
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": "prterun-node-17-2380@1",
    }  # fmt: skip
    assert parallel._open_mpi_5(here) == (f"127.0.0.1:{61_440 + 2380}", 2, 1)
    assert parallel._open_mpi_5({**here, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}) == (f"node-17:{61_440 + 2380}", 2, 1)
    large = parallel._open_mpi_5({**here, "PMIX_NAMESPACE": "prterun-vm-4194303@1"})
    assert large is not None and 61_440 <= int(large[0].split(":")[1]) < 65_536
    assert parallel._open_mpi_5({**here, "OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert parallel._open_mpi_5({**here, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://192.0.2.2:36745"}) is None
    assert parallel._open_mpi_5({}) is None


WATCH = """
import os, sys, time
from scoreflow.runs import parallel, watch
parallel.initialize()
watch.begin()
print("\\nready", flush=True)
sys.stdin.readline()
watch.finished()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "finished"])
def test_a_job_ends_as_a_whole(end):
    """Where one of three processes is killed, the first says so and all end; where one is done, the others go on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"SCOREFLOW_COORDINATOR": f"127.0.0.1:{port}", "SCOREFLOW_PROCESSES": "3", "PYTHONPATH": str(tiny.ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WATCH], env={**os.environ, **names, "SCOREFLOW_PROCESS_ID": str(i)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(3)
    ]  # fmt: skip
    try:
        for process in processes:
            # among the words of the collectives' library, which may share its line
            assert any("ready" in line for line in iter(process.stdout.readline, ""))
        if end == "killed":
            processes[2].kill()
            errors = [process.communicate(timeout=60)[1] for process in processes]
            assert processes[0].returncode == 1 and processes[1].returncode not in (0, None)
            assert "error: process 2 of 3 has ended before its time" in errors[0]
        else:
            processes[2].stdin.write("\n")
            processes[2].stdin.flush()
            time.sleep(5)  # its end waits for the others
            assert all(process.poll() is None for process in processes)
            for process in processes[:2]:
                process.stdin.write("\n")
                process.stdin.flush()
            assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
