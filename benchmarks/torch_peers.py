"""A trained vp_linear run with the network `unet` in PyTorch, and its likelihood by two PyTorch libraries.

`k_diffusion.sampling.log_likelihood` (in its own coordinates z = x / alpha and sigma / alpha) and `compute_likelihood`
of flow_matching's `ODESolver` (with time 1 at the data and 0 at the noise) solve the same probability flow with
torchdiffeq's dopri5. Each draws its own random signs; they are drawn again here from the same seed, so that a reference
can use them.

    pip install -e '.[bench]' k-diffusion flow-matching
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.torch_unet import TorchUNet
from scoreflow.types import Params

_SEED = 0


def put(module: Any, given: Any) -> None:
    """Gives a PyTorch layer the kernel or scale and the bias of a Flax layer."""
    kernel = np.asarray(given["kernel"] if "kernel" in given else given["scale"])
    if isinstance(module, nn.Linear):
        kernel = kernel.reshape(module.in_features, -1).T
    elif isinstance(module, nn.Conv2d):
        kernel = kernel.reshape(*module.kernel_size, *kernel.shape[-2:]).transpose(3, 2, 0, 1)
    if kernel.shape != tuple(module.weight.shape):
        raise ValueError(f"a layer of shape {tuple(module.weight.shape)} cannot have weights of shape {kernel.shape}")
    module.weight.data = torch.tensor(kernel)
    module.bias.data = torch.tensor(np.asarray(given["bias"]).reshape(-1))


def unet(params: Params, settings: Any, image_channels: int) -> nn.Module:
    """`models.unet.UNet` with given parameters, without dropout.

    Args:
      params: of the network.
      settings: its section of the config.
      image_channels: of x.
    """
    net = TorchUNet(image_channels, settings.channels, tuple(settings.multipliers), settings.blocks, 0.0)
    put(net.first, params["Conv3x3_0"])
    put(net.embed[0], params["NoiseEmbedding_0"]["Dense_0"])
    put(net.embed[2], params["NoiseEmbedding_0"]["Dense_1"])
    put(net.last_norm, params["GroupNorm_0"])
    put(net.last, params["Conv3x3_1"])
    levels = [block for level in net.down for block in level]
    blocks = [*levels, net.middle1, net.middle2, *(block for level in net.up for block in level)]
    for i, block in enumerate(blocks):
        given = params[f"ResidualBlock_{i}"]
        layers = {"norm1": "GroupNorm_0", "conv1": "Conv3x3_0", "modulation": "Dense_0", "norm2": "GroupNorm_1"}
        layers |= {"conv2": "Conv3x3_1"} | ({"skip": "Dense_1"} if "Dense_1" in given else {})
        for ours, name in layers.items():
            put_skip = ours == "skip"
            layer = getattr(block, ours)
            put(layer, _pointwise(given[name]) if put_skip else given[name])
    for ours, name in {"norm": "GroupNorm_0", "qkv": "DenseGeneral_0", "out": "DenseGeneral_1"}.items():
        put(getattr(net.attention, ours), params["SelfAttention_0"][name])
    return net.eval().requires_grad_(False)


def _pointwise(given: Any) -> dict[str, np.ndarray]:
    """A dense layer over channels as a convolution of one pixel."""
    return {"kernel": np.asarray(given["kernel"])[None, None], "bias": np.asarray(given["bias"])}


class Flow(NamedTuple):
    """The probability flow of a vp_linear run that predicts v.

    Attributes:
      net: (x, log_snr) -> v.
      beta_min, beta_max: of the process.
      t_min: where the data are.
    """

    net: nn.Module
    beta_min: float
    beta_max: float
    t_min: float

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)

    def noise(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """The noise that the network sees in x [B, ...] at log_snr, a number."""
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        return sigma * x + alpha * self.net(x, log_snr.expand(len(x)))

    def denoiser(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | z] for z = x / alpha at sigma / alpha [B], the same for all: what k-diffusion calls a model."""
        log_snr = -2.0 * sigma[0].log()
        return z - sigma[0] * self.noise(torch.sigmoid(log_snr).sqrt() * z, log_snr)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt for flow_matching's t, from 1 at the data to 0 at the horizon."""
        time = self.t_min + (1.0 - t) * (1.0 - self.t_min)
        log_alpha = self.log_alpha(time)
        variance = -torch.expm1(2.0 * log_alpha)
        log_snr = 2.0 * log_alpha - variance.log()
        beta = self.beta_min + time * (self.beta_max - self.beta_min)
        return -(1.0 - self.t_min) * 0.5 * beta * (self.noise(x, log_snr) / variance.sqrt() - x)


class Answer(NamedTuple):
    """Log-densities [B], the random signs they were found with, like x in JAX's order of axes, and evaluations."""

    logp: np.ndarray
    probe: np.ndarray
    nfe: int


def by_k_diffusion(flow: Flow, x: np.ndarray, tolerance: float) -> Answer:
    """`k_diffusion.sampling.log_likelihood`."""
    from k_diffusion.sampling import log_likelihood

    data = torch.tensor(x).permute(0, 3, 1, 2)
    ends = [float(torch.exp(-log_alpha) * (-torch.expm1(2.0 * log_alpha)).sqrt()) for log_alpha in _ends(flow)]
    first = float(torch.exp(_ends(flow)[0]))
    torch.manual_seed(_SEED)
    probe = torch.randint_like(data, 2) * 2 - 1
    torch.manual_seed(_SEED)
    logp, info = log_likelihood(flow.denoiser, data / first, *ends, rtol=tolerance, atol=tolerance)
    size = data[0].numel()
    return Answer(logp.numpy() - size * np.log(first), probe.permute(0, 2, 3, 1).numpy(), info["fevals"])


def by_flow_matching(flow: Flow, x: np.ndarray, tolerance: float) -> Answer:
    """`flow_matching.solver.ODESolver.compute_likelihood`."""
    from flow_matching.solver import ODESolver

    calls = 0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return flow.velocity(x, t)

    data = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.manual_seed(_SEED)
    probe = (torch.randn_like(data) < 0) * 2.0 - 1.0
    torch.manual_seed(_SEED)
    options: dict[str, Any] = {"step_size": None, "method": "dopri5", "rtol": tolerance, "atol": tolerance}
    solve: Callable = ODESolver(velocity_model=velocity).compute_likelihood
    _, logp = solve(x_1=data, log_p0=lambda z: normal.log_prob(z).flatten(1).sum(1), **options)
    return Answer(logp.detach().numpy(), probe.permute(0, 2, 3, 1).numpy(), calls)


def _ends(flow: Flow) -> tuple[Tensor, Tensor]:
    first, last = (flow.log_alpha(torch.tensor(t, dtype=torch.float64)) for t in (flow.t_min, 1.0))
    return first, last
