import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from scoreflow import configure, data, train
from scoreflow.begin import WarmStart
from scoreflow.experiment import INIT, TRAIN
from scoreflow.runs import checkpoint, parallel, report, workdir
from scoreflow.runs import log as run_log
from scoreflow.runs.errors import RunError, UserError
from scoreflow.step import TrainState, check_finite, compile_dispatch, init_state, make_train_step, state_of
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def _experiment():
    config = tiny.digits()
    experiment = configure.experiment(config, "vp_digits")
    return experiment, configure.train_options(config, experiment)


def _restored(experiment, options, folder: Path, step: int = 8, *, fsdp: bool = False) -> TrainState:
    template = init_state(experiment.init, options.optimizer, experiment.key(INIT), fsdp=fsdp)
    return checkpoint.restore(workdir.checkpoints(folder), step, template)


def _run(folder: Path, **changes):
    """(newest step, its state) of the tiny run in a folder."""
    experiment, options = _experiment()
    state = train.train(experiment, options._replace(**changes), folder)
    step = checkpoint.latest(workdir.checkpoints(folder))
    restored = _restored(experiment, options, folder, step)
    assert _same(state, restored)  # what training returns is what it has written
    return step, restored


def _same(first, second):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), first, second)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 8 steps."""
    folder = tmp_path_factory.mktemp("whole")
    with jax.numpy_rank_promotion("allow"):
        return folder, _run(folder)[1]


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(whole, tmp_path):
    folder, final = whole
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for step in (6, 8):  # as if killed after step 4
        shutil.rmtree(copy / "checkpoints" / str(step))
        (copy / "checkpoints" / f"{step}.sha256.json").unlink()
    step, resumed = _run(copy)
    assert step == 8 and _same(resumed, final)
    records = {name: [r for r in run_log.read_metrics(f) if "loss" in r] for name, f in (("a", folder), ("b", copy))}
    assert [r["step"] for r in records["b"]] == [2, 4, 6, 8]
    assert [r["loss"] for r in records["a"]] == [r["loss"] for r in records["b"]]


def test_training_in_memory_equals_training_in_a_folder_bit_for_bit(whole):
    """An experiment without a folder, and plain functions without an experiment: the same averages."""
    experiment, options = _experiment()
    assert _same(train.fit_experiment(experiment, options), whole[1].ema_params)
    batches = [data.batch(experiment.data.train, experiment.seed, i, options.batch_size) for i in range(options.steps)]
    seen = []
    state = train.fit(
        experiment.objective, jax.jit(experiment.init)(experiment.key(INIT)), options.optimizer, batches,
        key=experiment.key(TRAIN), ema_decay=options.ema_decay, callback=lambda step, terms: seen.append((step, terms)),
    )  # fmt: skip
    assert _same(state, whole[1])
    losses = [r["loss"] for r in run_log.read_metrics(whole[0]) if "loss" in r]  # means over 2 steps
    assert [step for step, _ in seen] == list(range(1, 9))
    np.testing.assert_allclose(np.reshape([terms["loss"] for _, terms in seen], (4, 2)).mean(1), losses, rtol=1e-6)


def test_training_in_memory_goes_on_from_given_parameters(whole):
    experiment, options = _experiment()
    still = options._replace(optimizer=optax.sgd(0.0), steps=2)
    ends = train.fit_experiment(experiment, still, whole[1].ema_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ends, whole[1].ema_params)


@pytest.mark.slow
def test_several_steps_per_dispatch_are_the_same_steps(whole, tmp_path):
    step, state = _run(tmp_path, steps_per_dispatch=2)
    assert step == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), state.params, whole[1].params)


@pytest.mark.slow
def test_one_and_four_devices_give_the_same_losses(whole, tmp_path, monkeypatch):
    assert jax.device_count() == 4
    monkeypatch.setattr(parallel, "mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
    _run(tmp_path)
    losses = [[r["loss"] for r in run_log.read_metrics(folder) if "loss" in r] for folder in (whole[0], tmp_path)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@functools.cache
def _wide():
    """(experiment, options) of a wider network, whose larger kernels can be divided."""
    config = tiny.digits(model={"name": "mlp", "width": 64, "depth": 2, "dropout": 0.1}, training__fsdp=True)
    experiment = configure.experiment(config, "vp_digits")
    return experiment, configure.train_options(config, experiment)


@pytest.mark.slow
def test_a_divided_state_is_the_same_run(tmp_path):
    """Against whole copies: the losses, and the parameters at the end. Each of 4 devices holds a quarter of them."""
    experiment, options = _wide()
    assert options.fsdp
    ends = {}
    for name, fsdp in (("whole", False), ("divided", True)):
        folder = tmp_path / name
        train.train(experiment, options._replace(fsdp=fsdp), folder)
        ends[name] = _restored(experiment, options, folder, fsdp=not fsdp)  # and comes back the other way
    whole, divided = ({r["step"]: r["loss"] for r in run_log.read_metrics(tmp_path / n) if "loss" in r} for n in ends)
    assert whole.keys() == divided.keys() and list(divided.values()) == pytest.approx(list(whole.values()), rel=1e-5)
    for a, b in zip(*(jax.tree.leaves(state.ema_params) for state in ends.values())):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    def bytes_on_one_device(state):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))

    small = sum(leaf.nbytes for leaf in jax.tree.leaves(ends["divided"]) if leaf.size < 2**12)
    quarter, all_of_it = bytes_on_one_device(ends["whole"]), bytes_on_one_device(ends["divided"])
    assert quarter - small == pytest.approx((all_of_it - small) / 4, rel=1e-6)


def test_memory_of_a_program_is_counted_for_each_device():
    """x [4 n] split over 4 devices, beside y [n] whole on all: 2 n numbers on each, and n of the result, which is new."""
    n = 2**16
    x, y = parallel.shard(np.ones(4 * n, np.float32)), parallel.replicate(np.ones(n, np.float32))
    run = parallel.jit(lambda x, y: x + jnp.tile(y, 4), out_shardings=parallel.split())
    compiled, memory = parallel.compile_for(run, x, y)
    assert memory.arguments == 2 * 4 * n
    assert 4 * n <= memory.work < 16 * n
    np.testing.assert_array_equal(compiled(x, y), 2 * np.ones(4 * n))


def test_a_checkpoint_of_four_devices_restores_on_one(whole, monkeypatch):
    experiment, options = _experiment()
    monkeypatch.setattr(parallel, "mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
    state = _restored(experiment, options, whole[0])
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {1}
    assert _same(state, whole[1])


def test_a_run_leaves_metrics_pictures_and_the_newest_checkpoints(whole):
    folder, _ = whole
    for name in ("metrics.jsonl", "loss.png", "loss_by_log_snr.png", "trajectory.png", "samples/8.png", "tensorboard"):
        assert (folder / name).exists()
    records = run_log.read_metrics(folder)
    assert {"loss", "order1", "grad_norm", "examples_per_second"} <= records[0].keys()
    assert [r["step"] for r in records if "validation_loss" in r] == [4, 8]
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.is_dir()) == [4, 6, 8]


def test_tensorboard_has_the_same_numbers(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole[0] / "tensorboard"))
    events.Reload()
    logged = [(r["step"], r["loss"]) for r in run_log.read_metrics(whole[0]) if "loss" in r]
    np.testing.assert_allclose([(e.step, e.value) for e in events.Scalars("loss")], logged, rtol=1e-6)
    assert events.Images("samples")[0].width >= 640


# ----------------------------------------------------------------------------------------------------------------------
# The step.


def _linear_objective(params, key, batch, *, train, step=None):
    noise = jax.random.normal(key, ())
    loss = jnp.mean((batch["x"] @ params["w"] + 0.1 * noise) ** 2)
    return loss, {"loss": loss}


@pytest.mark.parametrize("progress, shown", [(False, ""), (True, "3/3"), (3, "3/3")])
def test_fit_shows_a_bar_where_it_is_asked_for(progress, shown, monkeypatch, capsys):
    """Batches of known number need no total, a generator does; the result is the same."""
    monkeypatch.setattr(report.sys.stderr, "isatty", lambda: True, raising=False)
    batches = [{"x": np.full((4, 1), float(i), np.float32)} for i in range(3)]
    given = batches if progress is True else iter(batches)
    state = train.fit(
        _linear_objective, {"w": jnp.zeros(1)}, optax.sgd(0.1), given, key=jax.random.key(0), progress=progress
    )
    plain = train.fit(_linear_objective, {"w": jnp.zeros(1)}, optax.sgd(0.1), batches, key=jax.random.key(0))
    err = capsys.readouterr().err
    assert shown in err and bool(shown) == bool(err)
    np.testing.assert_array_equal(state.params["w"], plain.params["w"])


def test_accumulation_is_the_mean_gradient_of_the_microbatches():
    batch = {"x": jax.random.normal(jax.random.key(0), (12, 3))}
    params = {"w": jnp.arange(3.0)}
    key, optimizer = jax.random.key(5), optax.sgd(1.0)
    train_step = make_train_step(_linear_objective, optimizer, key, ema_decay=0.9, grad_accum=3)
    state, metrics = train_step(state_of(params, optimizer), batch)
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)
    grad = jax.grad(lambda p, k, x: _linear_objective(p, k, {"x": x}, train=True)[0])
    wanted = sum(grad(params, k, x)["w"] for k, x in zip(keys, batch["x"].reshape(3, 4, 3))) / 3
    np.testing.assert_allclose(params["w"] - state.params["w"], wanted, rtol=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(jnp.linalg.norm(wanted)), rel=1e-5)


def test_ema_is_the_running_average_with_its_warm_up():
    optimizer, params = optax.sgd(0.1), {"w": jnp.ones(3)}
    state = state_of(params, optimizer)
    train_step = make_train_step(_linear_objective, optimizer, jax.random.key(0), ema_decay=0.3)
    average = np.ones(3)
    for i in range(6):
        state, _ = train_step(state, {"x": jnp.eye(3)})
        decay = min(0.3, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)


def test_a_followed_group_is_not_averaged():
    def objective(params, key, batch, *, train, step):
        loss, terms = _linear_objective(params["score"], key, batch, train=train)
        return loss + jnp.sum(params["vae"]["w"] ** 2), terms

    optimizer, params = optax.sgd(0.1), {"score": {"w": jnp.ones(3)}, "vae": {"w": jnp.ones(2)}}
    train_step = make_train_step(objective, optimizer, jax.random.key(0), ema_decay=0.9, followed=("vae", "terminal"))
    state, _ = train_step(state_of(params, optimizer), {"x": jnp.eye(3)})
    assert _same(state.ema_params["vae"], state.params["vae"]) and not _same(state.params["vae"], params["vae"])
    assert not _same(state.ema_params["score"], state.params["score"])


def test_the_dispatch_is_traced_once():
    traces = []

    def objective(params, key, batch, *, train, step):
        traces.append(1)
        return _linear_objective(params, key, batch, train=train)

    optimizer = optax.adam(0.1)
    state = parallel.replicate(state_of({"w": jnp.ones(3)}, optimizer))
    dispatch = compile_dispatch(make_train_step(objective, optimizer, jax.random.key(0), ema_decay=0.9), 1)
    for i in range(3):
        state, _ = dispatch(state, parallel.shard({"x": np.full((1, 4, 3), i, np.float32)}, axis=1))
    assert len(traces) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    experiment, options = _experiment()

    def poisoned(params, key, batch, *, train, step=None):
        loss, terms = experiment.objective(params, key, batch, train=train, step=step)
        bad = jnp.where(jnp.mean(batch["x"]) == poison, jnp.nan, 0.0)
        return loss + bad, {name: value + bad for name, value in terms.items()}

    poison = jnp.mean(jnp.asarray(data.batch(experiment.data.train, 0, 5, 16)["x"]))
    with pytest.raises(RunError, match="step 5: .*loss = nan.*checkpoint of step 4 is kept"):
        train.train(experiment._replace(objective=poisoned), options, tmp_path)
    assert checkpoint.latest(workdir.checkpoints(tmp_path)) == 4


def _sometimes_nan(params, key, batch, *, train, step):
    loss, terms = _linear_objective(params, key, batch, train=train)
    bad = jnp.where(batch["bad"].any(), jnp.nan, 0.0)
    return loss + bad, {name: value + bad for name, value in terms.items()}


def test_a_skipped_step_changes_nothing_but_the_count():
    """NaN in steps 1 and 2 of 5: parameters, average and moments are those of the finite steps alone."""
    optimizer, params = optax.adam(0.1), {"w": jnp.ones(3)}
    fresh = state_of(params, optimizer)
    train_step = make_train_step(_sometimes_nan, optimizer, jax.random.key(0), ema_decay=0.9, skip=2)
    x, state, seen = jax.random.normal(jax.random.key(1), (5, 4, 3)), fresh, []
    for i in range(5):
        before = state
        state, metrics = train_step(state, {"x": x[i], "bad": jnp.array([i in (1, 2)])})
        seen.append(float(metrics["skipped"]))
        if i in (1, 2):
            assert _same(state[1:], before[1:]) and int(state.step) == int(before.step) + 1
    assert seen == [0.0, 1.0, 1.0, 0.0, 0.0]
    wanted, plain = fresh, make_train_step(_linear_objective, optimizer, jax.random.key(0), ema_decay=0.9)
    for i in (0, 3, 4):
        wanted, _ = plain(wanted._replace(step=jnp.asarray(i)), {"x": x[i]})
    assert _same(state[1:], wanted[1:])


def test_more_skipped_steps_in_a_row_than_allowed_stop_the_run():
    nan = np.nan
    assert check_finite({"loss": np.array([1.0, nan, nan])}, 0, allowed=2) == 2
    assert check_finite({"loss": np.array([nan, 1.0, nan])}, 3, allowed=3, before=2) == 1
    with pytest.raises(RunError, match="step 7: loss = nan"):
        check_finite({"loss": np.array([nan, nan])}, 6, allowed=3, before=2)


@pytest.mark.slow
def test_a_skipped_step_is_counted_in_the_log(tmp_path):
    experiment, options = _experiment()

    def poisoned(params, key, batch, *, train, step=None):
        loss, terms = experiment.objective(params, key, batch, train=train, step=step)
        bad = jnp.where(step == 4, jnp.nan, 0.0) if step is not None else 0.0
        return loss + bad, {name: value + bad for name, value in terms.items()}

    train.train(experiment._replace(objective=poisoned), options._replace(skip=1), tmp_path)
    records = [r for r in run_log.read_metrics(tmp_path) if "skipped" in r]
    assert [r["skipped"] for r in records] == [0, 0, 1, 0] and np.isfinite([r["loss"] for r in records]).all()


@pytest.mark.slow
def test_a_warm_start_begins_with_the_averaged_parameters_of_the_other_run(whole, tmp_path):
    """With a learning rate of nothing, the new run ends where the other's average was."""
    experiment, options = _experiment()
    _, other = whole
    still = options._replace(warm_start=WarmStart(whole[0]), optimizer=optax.sgd(0.0))
    train.train(experiment, still, tmp_path)
    state = _restored(experiment, still, tmp_path)
    assert _same(state.params, other.ema_params) and not _same(state.params, other.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.ema_params, other.ema_params)


def test_a_warm_start_from_nothing_or_from_another_network_is_refused(whole, tmp_path):
    experiment, options = _experiment()
    with pytest.raises(UserError, match="nowhere holds no usable checkpoint"):
        train.train(experiment, options._replace(warm_start=WarmStart(tmp_path / "nowhere")), tmp_path / "a")
    wide = configure.experiment(tiny.digits(model__width=32), "wide")
    with pytest.raises(UserError, match="does not fit this config"):
        train.train(wide, options._replace(warm_start=WarmStart(whole[0])), tmp_path / "b")
    workdir.record(tmp_path / "c", experiment.config | {"t_min": 1e-3})
    shutil.copytree(workdir.checkpoints(whole[0]), workdir.checkpoints(tmp_path / "c"))
    with pytest.raises(UserError, match="was trained with t_min = 0.001, not 1e-05"):
        source = WarmStart(tmp_path / "c", same=("process.", "t_min"))
        train.train(experiment, options._replace(warm_start=source), tmp_path / "d")


@pytest.mark.slow
def test_training_lowers_the_loss_to_what_the_data_allow(tmp_path):
    """Gaussian data in the plane: the exact minimum of the noise-weighted loss is known, and a small MLP gets there."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "gaussian.npy", rng.standard_normal((20_000, 2)).astype(np.float32))
    config = tiny.digits(
        data__name="arrays", data__path=str(tmp_path / "gaussian.npy"), weight__name="noise", sample_times__name="stratified",
        training__steps=400, training__batch_size=512, training__learning_rate=3e-3, training__warmup=20,
        training__steps_per_dispatch=20, training__checkpoint_every=400, training__validate_every=400,
        training__log_every=100, model__dropout=0.0, model__width=32, eval__features="pixels", score__prediction="noise",
    )  # fmt: skip
    experiment = configure.experiment(config, "gaussian")
    options = configure.train_options(config, experiment)
    train.train(experiment, options, tmp_path / "run")
    last = [r["validation_loss"] for r in run_log.read_metrics(tmp_path / "run") if "validation_loss" in r][-1]
    floor = 0.2759881506  # E rho for unit Gaussian data under VP, t ~ U[1e-5, 1]
    assert floor * 0.93 < last < floor * 1.12


# ----------------------------------------------------------------------------------------------------------------------
# Folders.


def test_a_folder_of_another_config_is_refused(tmp_path):
    config = tiny.digits().to_dict()
    workdir.record(tmp_path, config)
    (workdir.checkpoints(tmp_path) / "10").mkdir(parents=True)
    workdir.check(tmp_path, tiny.digits(training__steps=80, eval__draws=1).to_dict(), resume=True)
    for change, words in (
        ({"model__width": 32}, "model.width = 16, not 32"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"training__learning_rate": 1.0}, "training.learning_rate = 0.002, not 1.0"),
    ):
        with pytest.raises(UserError, match=words):
            workdir.check(tmp_path, tiny.digits(**change).to_dict(), resume=True)
    workdir.check(tmp_path, tiny.digits(training__learning_rate=1.0).to_dict(), resume=False)
    assert json.loads((tmp_path / "config.json").read_text())["versions"]["jax"] == jax.__version__


def test_evaluating_an_untrained_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no usable checkpoint; train first"):
        workdir.newest(tmp_path)
