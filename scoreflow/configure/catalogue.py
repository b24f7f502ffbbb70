"""What can be chosen by name, and what can be set: literal tables of names, whose settings their sources state.

A new method is a new row here; its settings, their conditions and their meaning are in its signature and docstring.
"""

from typing import Any

from scoreflow import augment, fits, optimizers, planner, sample, space, train
from scoreflow.data import load
from scoreflow.evaluators import context
from scoreflow.evaluators.baseline import baseline
from scoreflow.evaluators.bound import bound
from scoreflow.evaluators.divergence import divergence
from scoreflow.evaluators.horizons import horizons
from scoreflow.evaluators.latent import latent as latent_terms
from scoreflow.evaluators.likelihood import likelihood
from scoreflow.evaluators.mismatch import mismatch
from scoreflow.evaluators.samples import samples
from scoreflow.evaluators.score_error import score_error
from scoreflow.evaluators.symmetry import symmetry
from scoreflow.evaluators.tolerances import tolerances
from scoreflow.experiment import DataOptions, RunOptions, ScoreOptions
from scoreflow.latent import decoders
from scoreflow.models import plus
from scoreflow.models.dequantiser import DequantisingFlow
from scoreflow.models.hierarchical import HierarchicalVAE
from scoreflow.models.mlp import ResidualMLP
from scoreflow.models.unet import UNet
from scoreflow.models.vae import MLPVAE, ConvVAE
from scoreflow.objectives import conservative, dsm, high_order, latent, score_matching, times, weights
from scoreflow.processes import sdes, transitions
from scoreflow.samplers import adaptive, gaussian_multistep, grids, loop, rules, sampler
from scoreflow.settings import Catalogue
from scoreflow.terminal import families
from scoreflow.theory import processes as theory

PROCESSES = {**sdes.NAMED, **theory.NAMED}
MODELS = {
    "mlp": ResidualMLP,
    "unet": UNet,
    "ddpmpp": plus.DDPMpp,
    "ncsnpp": plus.NCSNpp,
    "adm": plus.ADM,
}
TERMINALS = {
    "prior": families.prior,
    "mixture": families.gaussian_mixture,
    "dirichlet": families.dirichlet,
    "glow": families.glow,
    "pushforward": families.pushforward,
}
VAES = {"none": None, "conv": ConvVAE, "mlp": MLPVAE, "hierarchical": HierarchicalVAE}
DECODERS = {
    "none": None,
    "bernoulli": decoders.bernoulli,
    "categorical": decoders.categorical,
    "logistic_mixture": decoders.logistic_mixture,
}
LATENTS = {
    "none": score_matching.score_matching,
    "alone": latent.vae_alone,
    "joint": latent.joint,
    "frozen": score_matching.score_matching,
}
LOSSES = {"first_order": dsm.dsm, "high_order": high_order.high_order}
PENALTIES = {"none": None, "quasi_conservative": conservative.quasi_conservative}
WEIGHTS = {
    "noise": weights.noise_weight,
    "likelihood": weights.likelihood_weight,
    "diffusion": weights.diffusion_weight,
    "edm": weights.edm_weight,
    "min_snr": weights.min_snr_weight,
    "sigmoid": weights.sigmoid_weight,
}
TIMES = {
    "uniform": times.uniform,
    "stratified": times.stratified,
    "importance": times.importance,
    "velocity": times.velocity,
    "normal_likelihood": times.normal_likelihood,
    "normal_unweighted": times.normal_unweighted,
    "variance_uniform": times.variance_uniform,
    "log_normal": times.log_normal,
}
GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr, "bell": grids.bell, "karras": grids.karras}
SAMPLERS = {
    **{name: rules.affine(transition) for name, transition in transitions.TRANSITIONS.items()},
    "predictor_corrector": rules.predictor_corrector,
    "heun": rules.HEUN,
    "dpm_solver_pp_2m": rules.DPM_SOLVER_PP_2M,
    "gaussian_multistep": gaussian_multistep.GaussianMultistep,
    "adaptive": adaptive.Adaptive,
}
CATALOGUES = {
    "process": Catalogue(PROCESSES, True, "vp_linear", "The forward SDE.", needs=("horizon",)),
    "model": Catalogue(MODELS, True, "unet", "The score network."),
    "augment": Catalogue({"none": None, "edm": augment.edm}, True, "none", "Augmentation of the training images."),
    "terminal": Catalogue(TERMINALS, True, "prior", "The distribution assumed at the horizon."),
    "vae": Catalogue(VAES, True, "none", "Encoder and decoder of a latent space."),
    "decoder": Catalogue(DECODERS, True, "none", "The likelihood of data given latents."),
    "latent": Catalogue(
        LATENTS,
        True,
        "none",
        "What is learned in latent space: the VAE alone, VAE and score prior jointly, or the prior of a frozen VAE.",
        extra={"joint": (optimizers.VaeRates, fits.InactiveOptions), "frozen": (fits.InactiveOptions,)},
    ),
    "dequantizer": Catalogue(
        {"none": None, "couplings": DequantisingFlow},
        True,
        "none",
        "A flow for variational dequantization, trained on the finished score model of init_from.",
    ),
    "loss": Catalogue(LOSSES, False, "first_order", "The loss of the score."),
    "penalty": Catalogue(PENALTIES, False, "none", "A penalty added to the loss."),
    "weight": Catalogue(WEIGHTS, False, "likelihood", "The weight on the squared noise error."),
    "sample_times": Catalogue(TIMES, False, "importance", "The distribution of the diffusion time in training."),
    "sampler": Catalogue(SAMPLERS, True, "dpm_solver_pp_2m", "The sampling algorithm.", shared=(loop.sample,)),
    "grid": Catalogue(GRIDS, False, "log_snr", "The times of a fixed grid."),
}

EVALUATORS: dict[str, Any] = {
    "likelihood": likelihood,
    "mismatch": mismatch,
    "bound": bound,
    "baseline": baseline,
    "latent": latent_terms,
    "divergence": divergence,
    "symmetry": symmetry,
    "score_error": score_error,
    "horizons": horizons,
    "tolerances": tolerances,
    "samples": samples,
}

# Settings of the sections in which nothing is chosen by name, and those at the top ("").
SECTIONS: dict[str, tuple[Any, ...]] = {
    "": (RunOptions,),
    "data": (load.load, DataOptions, space.pixels, space.quantiser),
    "score": (ScoreOptions,),
    "training": (train.TrainOptions, optimizers.OptimizerOptions, score_matching.labels),
    "sampling": (sample.SampleOptions, sampler.sampler),
    "eval": (context.EvalOptions, *EVALUATORS.values()),
    "plan": (planner.PlannerOptions,),
}
