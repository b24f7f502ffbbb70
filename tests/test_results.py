"""What a finished run gives: samples under names of their own, pictures within their time, and measures at the horizon."""

import json
import re
import shutil
import time

import jax
import numpy as np
import pytest

from scoreflow import configure, evaluate, finish, planner, sample, train
from scoreflow import draw as draws
from scoreflow.evaluate import measure
from scoreflow.evaluators.error_curve import LEAST, error_curve
from scoreflow.models import TERMINAL
from scoreflow.runs import checkpoint, report, workdir
from scoreflow.runs import log as run_log
from scoreflow.runs.errors import RunError, UserError
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


# ----------------------------------------------------------------------------------------------------------------------
# Results.


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A trained run that knows classes."""
    folder = tmp_path_factory.mktemp("classes") / "run"
    with jax.numpy_rank_promotion("allow"):
        config, _ = tiny.trained(folder, data__conditional=True, training__label_dropout=0.1)
    return folder, config


def draw(run, **changes):
    """What `--mode=sample` draws, and the names of all that is there now."""
    folder, config = run
    said = {name.replace("__", "."): str(value) for name, value in changes.items()}
    config = configure.resolve(config, {"sampling.num": "6", **said})
    experiment = configure.experiment(config, "tiny")
    x = sample.sample(experiment, configure.sample_options(config), folder)
    return x, {path.name for path in (folder / "samples").iterdir()}


def test_samples_made_otherwise_have_a_name_of_their_own(classes):
    first, names = draw(classes)
    assert {"8-6.npy", "8-6.labels.npy", "8-6.json", "8-6.png"} <= names
    again, same = draw(classes)
    np.testing.assert_array_equal(again, first)
    assert same == names
    drawn = [draw(classes, **change) for change in (
        {"sampling__seed": 1}, {"sampling__label": 3}, {"sampling__steps": 5}, {"sampler__name": "heun"},
        {"sampling__guidance": 2.0}, {"sampling__inpaint": "right"},
    )]  # fmt: skip
    kept = np.load(classes[0] / "samples" / "8-6.npy")
    np.testing.assert_array_equal(kept, first)
    arrays = [name for name in drawn[-1][1] if name.endswith(".npy") and ".labels" not in name]
    assert sorted(arrays) == [
        "8-6-2.npy",
        "8-6-3.npy",
        "8-6-4.npy",
        "8-6-5.npy",
        "8-6-6.npy",
        "8-6-inpainted.npy",
        "8-6.npy",
    ]
    for i in (0, 2, 3):  # in eight steps the network has not learned classes
        assert not np.array_equal(drawn[i][0], first)
    said = json.loads((classes[0] / "samples" / "8-6-3.json").read_text())
    assert said["step"] == 8 and said["settings"]["sampling.label"] == 3


def test_samples_of_a_run_that_was_trained_anew_have_a_name_of_their_own(tmp_path):
    first, _ = draw((tmp_path, tiny.trained(tmp_path)[0]))
    shutil.rmtree(tmp_path / "checkpoints")
    second, names = draw((tmp_path, tiny.trained(tmp_path, seed=1)[0]))
    assert not np.array_equal(first, second) and {"8-6.npy", "8-6-2.npy"} <= names
    np.testing.assert_array_equal(np.load(tmp_path / "samples" / "8-6.npy"), first)
    np.testing.assert_array_equal(np.load(tmp_path / "samples" / "8-6-2.npy"), second)


def test_filled_in_images_of_other_data_have_a_name_of_their_own(tmp_path):
    rng, drawn = np.random.default_rng(0), []
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 17, (200, 8, 8), np.uint8))
    of = lambda name: {"name": "arrays", "path": str(tmp_path / f"{name}.npy"), "num_levels": 17}
    config, _ = tiny.trained(tmp_path / "run", data=of("a"))
    for name in ("a", "b", "a"):
        config.data.path = of(name)["path"]
        drawn.append(draw((tmp_path / "run", config), sampling__inpaint="right"))
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "samples" / "8-6-inpainted.npy"), drawn[0][0])
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "samples" / "8-6-inpainted-2.npy"), drawn[1][0])
    assert len([name for name in drawn[2][1] if name.endswith(".npy")]) == 2


def test_labels_are_kept_beside_the_samples(classes):
    draw(classes)
    np.testing.assert_array_equal(np.load(classes[0] / "samples" / "8-6.labels.npy"), np.arange(6))
    options = sample.SampleOptions(num=5, batch_size=2, label=4)
    config = configure.resolve(classes[1], {"sampling.num": "5", "sampling.batch_size": "2", "sampling.label": "4"})
    sample.sample(configure.experiment(config, "tiny"), options, classes[0])
    np.testing.assert_array_equal(np.load(classes[0] / "samples" / "8-5.labels.npy"), np.full(5, 4))


def test_labels_are_written_above_their_images():
    """The words take room above the images and leave the images as they are."""
    images = np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1), np.uint8)
    plain, named = report.grid(images, 17, min_width=200), report.grid(images, 17, min_width=200, words=list("0123"))
    scale = plain.shape[0] // 19
    cut = lambda pixels, top, left: pixels[top : top + 8 * scale, left : left + 8 * scale]
    extra = (named.shape[0] - plain.shape[0]) // 2
    np.testing.assert_array_equal(cut(plain, scale, scale), cut(named, scale + extra, scale))
    bottom = 10 * scale
    np.testing.assert_array_equal(cut(plain, bottom, bottom), cut(named, bottom + 2 * extra, bottom))
    assert named[: scale + extra].max() > 200 and plain[:scale].max() == 96


def test_a_long_label_does_not_run_into_the_next():
    """It is cut where its image ends: the picture is that of a short label there, and the next label is whole."""
    images = np.zeros((2, 8, 8, 1), np.uint8)
    made = [
        report.grid(images, 17, min_width=200, columns=2, words=words) for words in (["long name" * 20, "b"], ["", "b"])
    ]
    second = 9 * (made[0].shape[1] // 19)
    np.testing.assert_array_equal(made[0][:, second:], made[1][:, second:])
    assert (made[0][:, :second] != made[1][:, :second]).any()


@pytest.mark.parametrize("label", [-1, 3])
def test_the_class_is_that_of_the_test_image_or_the_one_asked_for(classes, label):
    """The part that is filled in depends on the class, the part that is kept does not; labels are those of the rows."""
    folder, config = classes
    experiment = configure.experiment(config, "tiny")
    params = workdir.averaged(folder, 8, jax.eval_shape(lambda: experiment.init(jax.random.key(0))))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    options = sample.SampleOptions(num=6, inpaint="right", label=label)
    run = lambda options: sample.fill_in(experiment, params, options, jax.random.key(0))
    drawn, other = run(options), run(options._replace(label=9))
    own = experiment.data.test.label[:6]
    np.testing.assert_array_equal(drawn.label, np.repeat(own if label < 0 else np.full(6, label), 3))
    ours, theirs = (x.x.reshape(6, 3, 8, 8, 1) for x in (drawn, other))
    np.testing.assert_array_equal(ours[:, :2], theirs[:, :2])
    np.testing.assert_array_equal(ours[:, 2, :, :4], theirs[:, 2, :, :4])
    differs = (ours[:, 2] != theirs[:, 2]).any((1, 2, 3))
    np.testing.assert_array_equal(differs, drawn.label[::3] != 9)


def test_filled_images_do_not_depend_on_the_batch(classes, monkeypatch):
    """10 images in batches of 4, of 8 and of 12: the same, drawn in no larger ones, and with the progress shown."""
    experiment = configure.experiment(classes[1], "tiny")
    params, sizes = experiment.init(jax.random.key(0)), []
    noise = sample.initial_noise
    monkeypatch.setattr(sample, "initial_noise", lambda *args: sizes.append(len(args[2])) or noise(*args))
    options = sample.SampleOptions(num=10, inpaint="right")
    drawn = [
        sample.fill_in(experiment, params, options._replace(batch_size=size), jax.random.key(0)) for size in (4, 8, 12)
    ]
    assert sizes == [4, 8, 12]  # the last for the devices, of which there are four
    for other in drawn:
        assert other.x.shape == (30, 8, 8, 1) and (other.x == drawn[0].x).mean() > 0.99
        np.testing.assert_array_equal(other.x[::3], experiment.data.test.x[:10])
        np.testing.assert_array_equal(other.label, drawn[0].label)


def test_statistics_of_other_data_replace_no_picture(tmp_path):
    """Neither that of the run in the folder nor those of statistics taken before."""
    (tmp_path / "data.png").write_bytes(b"of the run")
    kept = []
    for name in ("a", "b", "a"):
        x = np.random.default_rng(ord(name)).integers(0, 17, (200, 8, 8)).astype(np.uint8)
        np.save(tmp_path / f"{name}.npy", x)
        config = tiny.digits(data={"name": "arrays", "path": str(tmp_path / f"{name}.npy")})
        evaluation = configure.evaluation(config, tmp_path / "cache")
        evaluate.prepare(configure.experiment(config, "tiny"), evaluation, tmp_path)
        written = {path.name: path.read_bytes() for path in (tmp_path / "statistics").glob("*.png")}
        kept.append(written)
    assert kept[0].keys() == {"pixels.png"} and kept[1].keys() == {"pixels.png", "pixels-2.png"}
    assert kept[1]["pixels.png"] == kept[0]["pixels.png"] != kept[1]["pixels-2.png"] and kept[2] == kept[1]
    assert (tmp_path / "data.png").read_bytes() == b"of the run"


def test_sampling_shows_its_progress(classes, capsys, monkeypatch):
    experiment = configure.experiment(classes[1], "tiny")
    params = experiment.init(jax.random.key(0))
    draws.make_draw(experiment, 4)(params, jax.random.key(0), 10)
    assert "10/10 samples   " in capsys.readouterr().err
    sample.fill_in(experiment, params, sample.SampleOptions(10, 4, inpaint="right"), jax.random.key(0))
    assert "10/10 images   " in capsys.readouterr().err


def test_failed_samples_are_named_and_left_out(classes, capsys):
    limited = {"sampler__name": "adaptive", "sampler__max_steps": 2}
    before = set(classes[0].rglob("*.*"))
    with pytest.raises(RunError, match="none of 6 samples is finite"):
        draw(classes, **limited)
    assert "6 of 6 samples are not finite and left out" in capsys.readouterr().err
    assert set(classes[0].rglob("*.*")) == before


def test_batches_are_rounded_up_to_the_devices(classes):
    """Of four: a batch of 7 is one of 8, and the samples are the same."""
    seven, _ = draw(classes, sampling__batch_size=7)
    np.testing.assert_array_equal(seven, draw(classes, sampling__batch_size=8)[0])


# ----------------------------------------------------------------------------------------------------------------------
# The end of a run, and what is measured where paths end.


@pytest.mark.parametrize("mean, horizon, large", [(5.0, 0.3, True), (0.0, 1.0, False)])
def test_the_mismatch_at_the_horizon_is_the_divergence_of_two_gaussians(tmp_path, mean, horizon, large):
    """Data N(m, I) end as N(alpha m, I) under VP, and the prior is N(0, 1 - alpha^2): both are known."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (mean + rng.standard_normal((9000, 2))).astype(np.float32))
    config = tiny.digits(data={"name": "arrays", "path": str(tmp_path / "x.npy")}, process__horizon=horizon)
    config.eval.update({"num_test": 900, "batch_size": 300})
    experiment = configure.experiment(config, "gaussian")
    evaluation = configure.evaluation(config, tmp_path)
    context = evaluation.context(experiment, experiment.init(jax.random.key(0)))
    results = measure(context, evaluation.evaluators, only=("mismatch",))
    alpha = float(experiment.model.process.alpha(horizon))
    var = float(experiment.model.process.prior_std()) ** 2
    wanted = 2 * 0.5 * (1 / var + alpha**2 * mean**2 / var - 1 + np.log(var))
    gap = results.metrics["likelihood"]["mismatch"]
    assert abs(gap.value - wanted) < 5 * gap.stderr + 0.01 * wanted + 1e-3
    assert bool(results.tables[0].notes) == large
    if large:
        assert (
            wanted > 9 and "choose terminal.name = mixture, or a larger process.horizon" in results.tables[0].notes[0]
        )


@pytest.mark.parametrize(
    "name, words", [("mixture", "another terminal.covariance"), ("dirichlet", "more terminal.comp")]
)
def test_a_mixture_that_does_not_fit_is_not_told_to_be_one(tmp_path, name, words):
    """Fitted to N(0, I) and moved by 100: a mixture is there already, so the way out is a better one."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((900, 2)).astype(np.float32))
    config = tiny.digits(data={"name": "arrays", "path": str(tmp_path / "x.npy")}, terminal__name=name)
    config.eval.update({"num_test": 90, "batch_size": 90})
    experiment = configure.experiment(config, "moved")
    params = experiment.init(jax.random.key(0))
    fitted = experiment.model.fits[TERMINAL](params, jax.random.key(1))
    params = {**params, TERMINAL: {**fitted, "means": fitted["means"] + 100.0}}
    evaluation = configure.evaluation(config, tmp_path)
    results = measure(evaluation.context(experiment, params), evaluation.evaluators, only=("mismatch",))
    (note,) = results.tables[0].notes
    assert words in note and "or a larger process.horizon" in note and "= mixture" not in note


def test_a_plan_for_a_constant_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.full((50, 3), 2.0, np.float32))
    config = tiny.digits(data={"name": "arrays", "path": str(tmp_path / "x.npy")}, training__batch_size=4)
    with pytest.raises(UserError, match="all 4[0-9] training examples are the same"):
        planner.plan(configure.experiment(config, "constant"), configure.planner_options(config), tmp_path)


def test_the_loss_by_log_snr_is_bounded_in_time():
    """With no time at all it takes 16 examples of each split; with all it needs, the mean over those it is given."""
    config = tiny.digits()
    experiment = configure.experiment(config, "tiny")
    params = experiment.init(jax.random.key(0))
    shortest, sixteen = (error_curve(experiment, params, **o)[1] for o in ({"seconds": 0.0}, {"num": 16}))
    more = error_curve(experiment, params, num=64)[1]
    for name in ("train", "test"):
        np.testing.assert_array_equal(shortest[name], sixteen[name])
        assert not np.array_equal(more[name], sixteen[name])
        np.testing.assert_allclose(more[name][0], 1.0, atol=0.15)  # a new network predicts about no noise


def test_pictures_at_the_end_fit_their_time(tmp_path, capsys, monkeypatch):
    """An evaluation of a second, a sampler of so many, and a budget for 3 samples: 3 are drawn, and no paths."""
    experiment = configure.experiment(tiny.digits(), "tiny")
    params = experiment.init(jax.random.key(0))
    pictures = finish.Pictures(experiment, tmp_path, run_log.Log(tmp_path, 0), 8, 8)
    per_sample = experiment.sampler.evaluations
    assert per_sample == 4 + 1  # a multistep rule in four steps, and the denoising
    written = pictures.at_the_end(params, 7, budget=3.5 * per_sample, evaluation=1.0)
    assert "drawing 3 samples, not 8, since each takes about 5.0 s" in capsys.readouterr().out
    assert [path.name for path in written] == ["7.png"]  # the loss by log-SNR takes at least 800 evaluations
    assert not (tmp_path / "trajectory.png").exists()
    written = pictures.at_the_end(params, 7, budget=1.0, evaluation=0.9 / LEAST)
    assert [path.name for path in written] == ["7.png", "loss_by_log_snr.png", "trajectory.png"]
    (tmp_path / "trajectory.png").unlink()
    written = pictures.at_the_end(params, 8)
    assert "drawing 8 samples\n" in capsys.readouterr().out and (tmp_path / "trajectory.png").exists()


def test_training_bounds_its_pictures_by_the_time_of_a_step(tmp_path, monkeypatch):
    """A step is three evaluations of the network for each of 16 examples; the first step also compiles."""
    taken, given = [], {}
    add = train.Meter.add
    monkeypatch.setattr(train.Meter, "add", lambda meter, m, seconds: taken.append(seconds) or add(meter, m, seconds))
    monkeypatch.setattr(
        finish.Pictures, "at_the_end", lambda self, params, step, **options: given.update(options) or []
    )
    config = tiny.digits()
    experiment = configure.experiment(config, "tiny")
    train.train(experiment, configure.train_options(config, experiment), tmp_path)
    assert len(taken) == 8 and given["evaluation"] == min(taken[1:]) / (3 * 16) > 0
    assert given["budget"] == 10.0  # seconds, which are more than a tenth of this run


@pytest.mark.parametrize("case", ["finished", "one dispatch"])
def test_pictures_are_bounded_where_no_step_was_timed(tmp_path, capsys, monkeypatch, case):
    """An evaluation of 100 s: a sample is beyond the ten seconds that there are, and so is the loss by log-SNR."""
    monkeypatch.setattr(finish, "seconds_of_evaluation", lambda experiment, params: 100.0)
    changes = {}
    if case == "finished":
        tiny.trained(tmp_path)
    else:
        changes = {f"training__{name}": 8 for name in ("steps_per_dispatch", "log_every", "checkpoint_every")}
        changes["training__validate_every"] = 8
    config = tiny.digits(**changes)
    experiment = configure.experiment(config, "tiny")
    train.train(experiment, configure.train_options(config, experiment), tmp_path)
    assert "drawing no samples, since each takes about 500 s; --mode=sample draws them" in capsys.readouterr().out
    assert {path.name for path in tmp_path.rglob("*.png")} - {"data.png"} == {"loss.png"}


def test_an_evaluation_is_timed_without_its_compilation():
    """A network that takes 2 s to trace and then 0.2 s for a batch of 16."""
    experiment = configure.experiment(tiny.digits(), "tiny")

    def apply(params, x, log_snr, cond=None):
        time.sleep(2.0)
        late = lambda x: time.sleep(0.2) or x
        return jax.pure_callback(late, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    slow = experiment._replace(model=experiment.model._replace(network=experiment.model.network._replace(apply=apply)))
    assert 0.2 / 16 <= finish.seconds_of_evaluation(slow, experiment.init(jax.random.key(0))) < 1.5 / 16
    alone = slow._replace(model=slow.model._replace(network=slow.model.network._replace(apply=None)))
    assert finish.seconds_of_evaluation(alone, {}) == 0.0


def test_a_picture_of_fewer_samples_does_not_replace_one_of_more(tmp_path):
    experiment = configure.experiment(tiny.digits(), "tiny")
    params, one = experiment.init(jax.random.key(0)), experiment.sampler.evaluations
    pictures = finish.Pictures(experiment, tmp_path, run_log.Log(tmp_path, 0), 8, 8)
    (path, *_) = pictures.at_the_end(params, 7)
    before = path.read_bytes()
    for budget in (3.5 * one, 0.5 * one):
        assert pictures.at_the_end(params, 7, budget=budget, evaluation=1.0)[0] == path
        assert path.read_bytes() == before
    pictures.at_the_end(params, 8, budget=3.5 * one, evaluation=1.0)
    assert (tmp_path / "samples" / "8.png").exists()


def test_a_guided_sample_takes_two_evaluations_in_each_place():
    """One with the label and one without it, so that pictures in time are half as many."""
    labeled = {"data__conditional": True, "training__label_dropout": 0.1}
    plain, guided = (
        configure.experiment(tiny.digits(**labeled, sampling__guidance=strength), "tiny").sampler.evaluations
        for strength in (1.0, 2.0)
    )
    assert guided == 2 * plain == 2 * (4 + 1)


def test_the_last_words_on_a_vae_name_the_stage_that_follows(tmp_path, capsys):
    """Both of its names, which are allowed with what they go with; after that stage there is no further one to name."""
    vae = {"vae": {"name": "mlp", "width": 8, "depth": 1, "latents": 2}, "decoder": {"name": "categorical"}}
    said = {}
    for name in ("alone", "joint", "frozen"):
        source = {} if name == "alone" else {"init_from": str(tmp_path)}
        experiment = configure.experiment(tiny.digits(**vae, **source, latent={"name": name}), name)
        finish.end(experiment, tmp_path, 8, 1.0, [])
        said[name] = capsys.readouterr().out
        assert re.search(rf"next: .*--workdir={tmp_path} --mode=eval$", said[name], re.M)
    words = f"then a score prior for this VAE: latent.name = joint or frozen, init_from = {tmp_path}"
    assert [name for name, out in said.items() if words in out] == ["alone"]


def test_pictures_can_be_left_out(tmp_path):
    tiny.trained(tmp_path)
    assert not list(tmp_path.rglob("*.png"))
    assert checkpoint.latest(workdir.checkpoints(tmp_path)) == 8
