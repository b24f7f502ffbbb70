"""DDPM++ of `scoreflow.models.plus` in PyTorch, layer for layer, to time against."""

import math

import torch
from torch import nn
from torch.nn import functional as F

_SKIP = math.sqrt(0.5)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def _resized(x: torch.Tensor, resize: int) -> torch.Tensor:
    """Copies upwards and means downwards: the box filter."""
    if not resize:
        return x
    return F.interpolate(x, scale_factor=2, mode="nearest") if resize > 0 else F.avg_pool2d(x, 2)


class _Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v))
        return (x + h.transpose(1, 2).reshape(x.shape)) * _SKIP


class _Block(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, resize: int = 0, attends: bool = False
    ):
        super().__init__()
        self.resize = resize
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resize else nn.Identity()
        self.attention = _Attention(outputs) if attends else nn.Identity()

    def forward(self, x, embedding):
        h = self.conv1(_resized(F.silu(self.norm1(x)), self.resize))
        h = F.silu(self.norm2(h + self.shift(embedding)[:, :, None, None]))
        h = self.conv2(self.dropout(h))
        return self.attention((self.skip(_resized(x, self.resize)) + h) * _SKIP)


class TorchDDPMpp(nn.Module):
    """x [B, C, H, W], log_snr [B] -> [B, C, H, W]."""

    def __init__(self, side: int, channels: int, multipliers: tuple, blocks: int, attention: tuple, dropout: float):
        super().__init__()
        width = 4 * channels
        self.register_buffer("frequencies", 1e-4 ** (torch.arange(channels // 2) / (channels // 2 - 1)))
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.down, self.up, widths, h = nn.ModuleList(), nn.ModuleList(), [channels], channels

        def block(inputs, outputs, **options):
            return _Block(inputs, outputs, width, dropout, **options)

        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(block(h, h, resize=-1))
                widths.append(h)
            for _ in range(blocks):
                self.down.append(block(h, channels * multiplier, attends=side >> level in attention))
                widths.append(h := channels * multiplier)
        self.middle1, self.middle2 = block(h, h, attends=True), block(h, h)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                attends = side >> level in attention and i == blocks
                self.up.append(block(h + widths.pop(), channels * multiplier, attends=attends))
                h = channels * multiplier
            if level:
                self.up.append(block(h, h, resize=1))
        self.last_norm, self.last = _norm(h), nn.Conv2d(h, 3, 3, padding=1)

    def forward(self, x, log_snr):
        angles = (-log_snr / 8.0)[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        h = self.first(x)
        skips = [h]
        for block in self.down:
            skips.append(h := block(h, embedding))
        h = self.middle2(self.middle1(h, embedding), embedding)
        for block in self.up:
            h = block(h if block.resize else torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(F.silu(self.last_norm(h)).float())
