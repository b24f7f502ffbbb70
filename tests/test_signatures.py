"""The promised arguments in the promised order, over the whole catalogue: every choice has the form of its Protocol."""

import functools
import inspect

import jax
import pytest
from ml_collections import ConfigDict

from scoreflow import configure, dequantise, divergence, likelihood, models, terminal
from scoreflow import score as scores
from scoreflow.configure.catalogue import CATALOGUES, EVALUATORS, MODELS, PROCESSES, SAMPLERS, TERMINALS
from scoreflow.evaluators.context import Evaluator
from scoreflow.likelihood import diagnostics, horizon
from scoreflow.objectives.protocols import Loss, Objective, Penalty
from scoreflow.objectives.times import TimeSampler
from scoreflow.objectives.weights import Weight
from scoreflow.processes import linear, rates, transitions
from scoreflow.samplers import Rule, Sample, adaptive, guide, rules, sample
from scoreflow.samplers.grids import TimeGrid
from scoreflow.space import TRAINING_RULES
from scoreflow.terminal import flow, mixture
from tests import tiny


def arguments(fn) -> tuple[list[str], dict[str, bool]]:
    """Names of what a callable takes by position, in order; and by keyword only, with whether it may be left out."""
    parameters = inspect.signature(fn).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    positional = [p.name for p in parameters if p.kind in kinds]
    keyword = {p.name: p.default is not p.empty for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return positional, keyword


def positional(fn) -> list[str]:
    return arguments(fn)[0]


def check_form(fn, protocol, method: str = "__call__") -> None:
    """The Protocol's arguments in its order, those by keyword among others that have defaults."""
    (_, *wanted), promised = arguments(getattr(protocol, method))
    names, keyword = arguments(fn)
    assert names == wanted
    assert promised.keys() <= keyword.keys()
    assert all(optional for name, optional in keyword.items() if name not in promised), keyword


FORMS = {"loss": Loss, "penalty": Penalty, "weight": Weight, "sample_times": TimeSampler, "grid": TimeGrid}
CHOICES = [(section, row) for section in FORMS for row in CATALOGUES[section].rows if row != "none"]


@pytest.mark.parametrize("section, row", CHOICES)
def test_every_choice_has_the_form_of_its_protocol(section, row):
    """As written, and with its settings bound."""
    check_form(CATALOGUES[section].rows[row], FORMS[section])
    config = configure.resolve(configure.defaults(), {f"{section}.name": row})
    check_form(CATALOGUES[section].build(config[section]), FORMS[section])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_a_sample(name):
    """One loop with a rule of the right form, or the adaptive sampler."""
    run = configure.experiment(tiny.digits(sampler__name=name), "sampler").sampler.run
    check_form(run, Sample)
    assert isinstance(run, functools.partial)
    if name == "adaptive":
        assert run.func == adaptive.Adaptive()
        return
    (rule,) = run.args
    assert run.func is sample and isinstance(rule, Rule) and rule.evaluations >= 1
    field, x, _, interval = positional(rule.step)
    assert (field, x, interval) == ("field", "x", "interval")
    assert positional(rule.coefficients) == ["process", "grid"] and len(positional(rule.init)) >= 1


@pytest.mark.parametrize("step", [rules.heun])
def test_a_rule_without_memory_is_a_plain_function(step):
    assert positional(step) == ["field", "x", "t", "s", "key"]


@pytest.mark.parametrize("transition", transitions.TRANSITIONS.values())
def test_transitions(transition):
    assert arguments(transition) == (["process", "s", "t"], {})


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_two_functions_of_the_same_form(name):
    config = configure.resolve(configure.defaults(), {"model.name": name})
    module = CATALOGUES["model"].build(config.model, num_classes=0)
    assert positional(module.__call__) == ["x", "log_snr", "cond", "train"]
    net = models.network(module)
    assert positional(net.init) == ["key", "x_shape"]
    check_form(net.apply, models.Apply)
    grouped = models.with_parts(net, mixing=models.mixing(0.0))
    assert positional(grouped.init) == ["key", "x_shape"]


@pytest.mark.parametrize("name", scores.PREDICTIONS)
def test_every_prediction_gives_a_score(name):
    process = PROCESSES["vp_linear"]()
    score = scores.score_fn(process, lambda params, x, log_snr, cond: x, None, scores.PREDICTIONS[name])
    check_form(score, scores.Score)
    check_form(scores.energy_fn(process, score), scores.Energy)
    check_form(scores.constrained(scores.energy_fn(process, score)), scores.Score)
    check_form(guide.classifier_free(score, 2.0), scores.Score)


VAE = {
    "vae": {"name": "mlp", "width": 8, "depth": 1, "latents": 2},
    "decoder": {"name": "categorical"},
    "init_from": "runs/not_read",  # by training alone
}
OBJECTIVES = {
    "score": {},
    "high_order": {"loss__name": "high_order"},
    "penalty": {"penalty__name": "quasi_conservative"},
    "terminal": {"terminal__name": "mixture"},
    "flow": {"terminal": {"name": "glow", "resolutions": 1, "steps": 1, "width": 4}},
    "dequantizer": {"dequantizer__name": "couplings", "init_from": "runs/not_read"},
    **{name: {**VAE, "latent": {"name": name}} for name in CATALOGUES["latent"].rows if name != "none"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_one_form(name):
    experiment = configure.experiment(tiny.digits(**OBJECTIVES[name]), name)
    check_form(experiment.objective, Objective)
    with jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(experiment.init, jax.random.key(0))
    check_form(experiment.model.score(params), scores.Score)
    assert positional(experiment.space.encode) == ["params", "key", "data"]
    assert positional(experiment.space.decode) == ["params", "key", "x"]


@pytest.mark.parametrize("name", TERMINALS)
def test_every_terminal_family_has_one_form(name):
    config = ConfigDict({"name": name, **{key: s.default for key, s in CATALOGUES["terminal"].settings(name).items()}})
    family = CATALOGUES["terminal"].build(config, read=lambda path: jax.numpy.zeros((4, 2)))
    assert positional(family.at) == ["params", "process", "t"]
    if family.init is not None:
        assert positional(family.init) == ["key", "shape"]
        assert family.fit is not None or family.loss is not None
    if family.loss is not None:
        assert positional(family.loss) == ["params", "x"]


@pytest.mark.parametrize("cls", [terminal.Gaussian, terminal.Pushforward, mixture.Mixture, flow.Flow])
def test_terminal_distributions(cls):
    assert positional(cls.sample) == ["self", "key", "shape"]
    if cls is not terminal.Pushforward:
        assert positional(cls.log_prob) == ["self", "x"]


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_is_given_a_context_and_keyword_options(name):
    check_form(EVALUATORS[name], Evaluator)
    assert EVALUATORS[name].__name__ == name


def test_every_estimator_of_the_divergence():
    for estimator in (divergence.hutchinson, divergence.exact):
        check_form(estimator, divergence.Divergence)


def test_every_rule_of_dequantization():
    bound = functools.partial(dequantise.truncated_normal, alpha=1.0, sigma=0.1)
    for rule in (*TRAINING_RULES.values(), bound, functools.partial(dequantise.variational, flow=None)):
        check_form(rule, dequantise.Dequantiser)


def test_densities_take_the_terminal_distribution_after_the_score():
    for fn, data in (
        (likelihood.log_prob, "x"),
        (likelihood.bound, "x"),
        (diagnostics.kl_terms, "x0"),
        (horizon.elbo_profile, "x0"),
    ):
        names, keyword = arguments(fn)
        assert names[:2] == ["process", "score"] and names[2] in ("terminal", "terminals")
        assert names[3:6] == ["key", data, "cond"] and "t_min" in keyword
    assert positional(diagnostics.symmetry) == ["process", "score", "key", "x0", "t", "cond"]


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_gives_every_quantity(name):
    process = PROCESSES[name]()
    assert isinstance(process, linear.Process)
    assert inspect.signature(PROCESSES[name]).return_annotation is type(process)
    for quantity in ("alpha", "sigma", "variance", "log_alpha", "log_snr", "drift_coeff", "diffusion_sq"):
        assert positional(getattr(process, quantity)) == ["t"]
    assert positional(process.inverse_log_snr) == ["log_snr"]
    assert positional(process.reverse_integrals) == ["s", "t"]
    assert positional(process.perturb) == ["key", "x0", "t"]
    assert positional(process.prior_std) == []


@pytest.mark.parametrize("name", [name for name in vars(rates) if name.endswith("Rate") and name != "Rate"])
def test_every_rate_gives_its_integral_and_the_inverse(name):
    for method in ("__call__", "integral", "inverse"):
        check_form(functools.partial(getattr(getattr(rates, name), method), None), rates.Rate, method)
