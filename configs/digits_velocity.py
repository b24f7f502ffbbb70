"""Velocity networks with the times and the second-order term of Zheng et al. 2023 (arXiv 2305.03935), on the digits.

    python main.py --config=configs/digits_velocity.py:vp --mode=train         # 5 to 9 minutes on 2 CPU cores
    python main.py --config=configs/digits_velocity.py:vp --mode=eval

The variants are vp (v-prediction) and straight (the straight path of flow matching). The likelihood weight with times
drawn in proportion to alpha^2 in log-SNR is a plain mean of squared velocity errors. In the last fifth of the steps the
trace of the Jacobian is matched too, with the published coefficient 0.1. Expect 1.88 bits/dim for vp and 1.95 for
straight.
"""

from configs import vp_digits

# The process; the time at which training and likelihood begin; the last time of the sampler's grid; the prediction.
VARIANTS = {
    "vp": ({"name": "vp_linear", "beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0}, 1e-5, 1e-3, "v"),
    "straight": ({"name": "straight", "horizon": 0.999}, 1e-3, 5e-3, "flow"),
}


def get_config(variant: str = "vp"):
    """The experiment with a process of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    process, t_min, last, prediction = VARIANTS[variant]
    config = vp_digits.get_config()
    config.process.update(process)
    config.t_min, config.sampling.t_min = t_min, last
    config.score.update({"prediction": prediction, "sigma_data": 1.0})
    config.sample_times.update({"name": "velocity"})
    config.loss.update(
        {
            "name": "high_order",
            "order": 2,
            "method": "trace",
            "coefficient2_trace": 0.1,
            "power2_trace": 2,
            "begin": 2240,
        }
    )
    return config
