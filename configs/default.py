"""Every setting, its unit and its default. Not an experiment: the others start from it and state what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults."""
    config = ConfigDict()
    config.seed = 0
    config.t_min = 1e-5  # time at which training and likelihood begin
    config.checkpoint = "newest"  # that is evaluated or sampled; or, of training.best, validation or frechet
    config.init_from = ""  # folder of a run whose averaged parameters training begins with; "" for fresh ones

    # What is modeled. By name: digits; checkerboard, eight_gaussians, mixture, mixture_1d, rings, spirals; cifar10,
    # cifar100, svhn_cropped, mnist, omniglot, celeb_a, downsampled_imagenet/32x32; arrays (.npy, .npz); folder.
    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.dir = ""  # of prepared or original files; "" for $SCOREFLOW_DATA or the user's cache folder
    config.data.path = ""  # of the file or folder, for arrays and folder
    config.data.levels = 256  # grey levels of uint8 arrays
    config.data.image_size = 0  # side to which images of folder, omniglot are resized; 0 leaves them
    config.data.test_fraction = 0.1  # held out, for arrays and folder without a test split
    config.data.flip = False  # mirror training images at random
    config.data.centered = True  # integer data in [-1, 1]; False for [0, 1]
    config.data.dequantization = "uniform"  # of training data: uniform, or none (bin centers)
    config.data.conditional = False  # give the network the labels
    config.data.binarized = False  # for a decoder: 0 or 1 at every access, with the level's share of the top as chance
    config.data.bits = 0  # for a decoder: of the levels that are kept; 0 for all

    # The forward SDE, all with a horizon: vp_linear, vp_constant, vp_exponential, sub_vp_linear (beta_min, beta_max),
    # vp_power (and rho), vp_cosine (offset), vp_geometric (variance_min, variance_max); ve_geometric, ve_constant,
    # ve_linear (sigma_min, sigma_max), ve_power (and rho), edm; straight; or by the theory's letters, theory_... (see
    # scoreflow/theory/processes.py).
    config.process = ConfigDict({"name": "vp_linear", "beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0})

    # What the network predicts (noise, x0, v, flow, score, edm), and the root mean square of the data.
    # mixed: with N(0, I), for latents; mixed_logit: that of the network's share at first.
    # energy: none for a free score; noise, paper or code for the gradient of an energy made of it (score.energy_fn).
    config.score = ConfigDict({"prediction": "v", "sigma_data": 1.0, "energy": "none"})
    config.score.update({"mixed": False, "mixed_logit": -3.0})

    # The network: mlp (width, depth), unet, or of the literature ddpmpp, ncsnpp, adm (the same without num_heads).
    config.model = ConfigDict()
    config.model.name = "unet"
    config.model.channels = 32
    config.model.multipliers = (1, 2)  # width of each resolution
    config.model.blocks = 1  # residual blocks per resolution
    config.model.attention = ()  # sides in pixels that get self-attention besides the lowest resolution
    config.model.num_heads = 1
    config.model.dropout = 0.1
    config.model.remat = False  # recompute the inside of blocks in the gradient: slower, less memory
    config.model.dtype = "float32"  # inside the network; or bfloat16

    # What is minimized: first_order, or high_order (order 2 or 3; method projected, exact in few dimensions, or trace;
    # of each term a coefficient and the power of the dimensions it is divided by: coefficient2, coefficient2_trace,
    # coefficient3, power2, power2_trace, power3; weighted: whether the weight below counts for orders 2 and 3 too;
    # begin and ramp: steps before which they count nothing, and over which they are let in).
    config.loss = ConfigDict({"name": "first_order"})
    # To which is added: none, or quasi_conservative (coefficient; form a1, a2, b; law rademacher, gaussian, sphere, or
    # exact in few dimensions; num of probes; weight noise, likelihood; every so many steps; part of the batch).
    config.penalty = ConfigDict({"name": "none"})
    # With what weight: noise, likelihood, diffusion (g^2), edm (sigma_data), min_snr (gamma), sigmoid (bias).
    config.weight = ConfigDict({"name": "likelihood"})
    # With what law of t: uniform, stratified, importance (for the likelihood weight), velocity (the same for networks
    # that predict v, or flow on the straight path), log_normal (mean, std); for data close to N(0, I)
    # normal_likelihood, normal_unweighted (of vp_linear alone), and variance_uniform for a weight g^2.
    config.times = ConfigDict({"name": "importance"})

    # The law assumed at the horizon: prior, the process's own Gaussian; or fitted to x_T in training: mixture
    # (components, covariance isotropic, diagonal, low_rank with a rank, or full; fitted_to data, which serves any T,
    # or end), dirichlet (components, fitted_to), glow (levels, steps, width, learning_rate); or pushforward, diffused
    # samples of any generator (path of an .npy file, as stored): samples alone, no density.
    config.terminal = ConfigDict({"name": "prior"})

    # A latent space: encoder and decoder conv (channels, multipliers, blocks, latents), mlp (width, depth, latents) or
    # hierarchical (channels, multipliers, scales, per_scale, latents, cells, outer_cells, inverted, pad), each with a
    # dtype; and what is said of data given latents: bernoulli, categorical, logistic_mixture (components).
    config.vae = ConfigDict({"name": "none"})
    config.decoder = ConfigDict({"name": "none"})
    # What is learnt there: alone, the VAE with N(0, I) as prior (balance of its groups); joint, with a score model
    # (algorithm 1, 2 or 3; learning_rate, learning_rate_end, eps and weight_decay of the VAE; spectral_score; and
    # drop_inactive for channels that say nothing), or frozen, the score model alone (drop_inactive). Of the divergence
    # a coefficient, from coefficient_min after `hold` steps to coefficient_max over `ramp` steps; closed_entropy;
    # spectral_weight.
    config.latent = ConfigDict({"name": "none"})

    # Instead of all this, a flow for variational dequantization, trained on the finished score model of init_from:
    # couplings (couplings, channels, blocks, components, num_heads, context; published: 4, 96, 2, 32, 4, 32).
    config.dequantiser = ConfigDict({"name": "none"})

    config.training = ConfigDict()
    config.training.learn = "all"  # or terminal: the score of init_from stays, and a terminal law is fitted
    config.training.steps = 1000  # 0 only fits what needs no steps
    config.training.batch_size = 128
    config.training.grad_accum = 1  # parts a batch is cut into
    config.training.steps_per_dispatch = 1  # steps in one compiled program
    config.training.fsdp = False  # True: each device holds a part of the parameters, averages and moments
    config.training.optimizer = "adamw"  # or adam, adamax
    config.training.learning_rate = 1e-3
    config.training.schedule = "cosine"  # to learning_rate_end at the last step; or constant
    config.training.learning_rate_end = 0.0
    config.training.warmup = 100  # steps
    config.training.beta1 = 0.9
    config.training.beta2 = 0.999
    config.training.eps = 1e-8
    config.training.weight_decay = 0.0  # decoupled; not of adam
    config.training.clip = 1.0  # global gradient norm; 0 for none
    config.training.ema_decay = 0.999
    config.training.label_dropout = 0.0  # share of labels hidden, for guidance
    config.training.skip = 0  # steps in a row that may be skipped because they are not finite; 0 stops at the first
    config.training.log_every = 20  # steps, here and below; 0 for never
    config.training.validate_every = 200
    config.training.checkpoint_every = 500
    config.training.sample_every = 0  # always at the end
    config.training.keep = 3  # checkpoints
    config.training.best = ()  # also the best by validation (the loss on test data), frechet (of eval.num_samples)

    # Fixed grids: euler_maruyama, ancestral, reverse_diffusion, exponential, conditional_mean, predictor_corrector
    # (predictor, corrector_steps, snr); euler_ode, exponential_ode, ddim, heun, dpm_solver_pp_2m. Or adaptive (rtol,
    # atol, max_steps). All: denoise, to end with E[x_0 | x].
    config.sampler = ConfigDict({"name": "dpm_solver_pp_2m", "denoise": True})
    config.grid = ConfigDict({"name": "log_snr"})  # uniform, log_snr, karras (rho)

    config.sampling = ConfigDict()
    config.sampling.num = 100
    config.sampling.batch_size = 100
    config.sampling.steps = 40  # for a horizon of the process's default
    config.sampling.scale_steps = True  # a shorter horizon takes its share of them; False: all
    config.sampling.t_min = 1e-3  # last time of the grid
    config.sampling.guidance = 1.0  # 0 ignores labels, 1 follows them, more exaggerates
    config.sampling.label = -1  # class; -1 for all in turn
    config.sampling.inpaint = "none"  # bottom, right, center: fill that part of test images in

    config.eval = ConfigDict()
    config.eval.likelihood = True
    config.eval.t_min = 0.0  # time at which the likelihood's ODE begins; 0 for t_min
    # Must be chosen for integer data: uniform, truncated_normal (set t_min for it), variational (needs a dequantiser).
    config.eval.dequantization = ""
    config.eval.draws = 5  # dequantizations per test example, averaged; importance-weighted too if divergence is exact
    config.eval.num_test = 0  # test examples; 0 for all
    config.eval.batch_size = 120
    config.eval.divergence = "hutchinson"  # or exact
    config.eval.rtol = 1e-3  # of the solver; its own error is printed beside the standard error
    config.eval.atol = 1e-3
    config.eval.max_steps = 1000
    config.eval.clock = "time"  # of the solver; or log_snr
    config.eval.bound_times = 0  # times per example for the bound of the SDE model; 0 skips it
    config.eval.diagnose = 0  # test examples for the parts of the ODE's divergence; 0 skips them
    config.eval.symmetry = 0  # test examples for how far the score is from a gradient, over time; 0 skips it
    config.eval.symmetry_times = 100
    config.eval.symmetry_probes = 16  # 0 for all directions
    config.eval.horizons = ()  # times T at which the path may end: the bound at each, and the best
    config.eval.score_error = 0  # test examples for the error against the exact score, of data where that is known
    config.eval.tolerances = 0  # samples on which the adaptive sampler's evaluations are counted; 0 skips it
    config.eval.rtols = (1e-3, 1e-4, 1e-5)  # with each of atols
    config.eval.atols = (1e-5, 1e-6)
    config.eval.check = 120  # examples on which the solver's own error is measured
    config.eval.baseline = True  # compare with a Gaussian mixture, up to 256 dimensions
    config.eval.num_samples = 1500  # 0 skips sample metrics
    # pixels; digits: a classifier fitted to the training split; inception: the network of the FID, whose weights must
    # be in downloads/ of the data folder, or metrics of features are left out
    config.eval.features = "pixels"
    config.eval.neighbors = 3

    # --mode=plan: processes, horizons and steps, for the Gaussian with the data's mean and covariance.
    config.plan = ConfigDict()
    config.plan.accuracy = 0.1  # 2-Wasserstein distance to reach, as a share of the data's spread
    config.plan.score_error = 0.0  # of the network, in L2 over all dimensions, for the bound
    config.plan.steps = (10, 20, 50, 100, 200, 500, 1000)  # of the table and the plot
    config.plan.num = 10_000  # training examples to fit
    return config
