"""The U-Net of `scoreflow.models.unet` in PyTorch, layer for layer, to time against."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def _norm(channels: int) -> nn.GroupNorm:
    groups = math.gcd(channels, min(32, max(1, channels // 4)))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, embedding):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + self.conv2(h)


class _Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv, self.out = (
            _norm(channels),
            nn.Linear(channels, 3 * channels),
            nn.Linear(channels, channels),
        )

    def forward(self, x):
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v))
        return x + h.transpose(1, 2).reshape(batch, channels, height, width)


class TorchUNet(nn.Module):
    """x [B, C, H, W], log_snr [B] -> [B, C, H, W]."""

    def __init__(self, image_channels: int, channels: int, multipliers: tuple[int, ...], blocks: int, dropout: float):
        super().__init__()
        width = 4 * channels
        self.register_buffer("frequencies", torch.tensor(2 * np.pi / np.geomspace(1.0, 200.0, 32), dtype=torch.float32))
        self.embed = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.first = nn.Conv2d(image_channels, channels, 3, padding=1)
        widths, self.down, h = [channels], nn.ModuleList(), channels
        for level, multiplier in enumerate(multipliers):
            level_blocks = nn.ModuleList()
            for _ in range(blocks):
                level_blocks.append(_Block(h, channels * multiplier, width, dropout))
                h = channels * multiplier
                widths.append(h)
            if level < len(multipliers) - 1:
                widths.append(h)
            self.down.append(level_blocks)
        self.middle1, self.attention, self.middle2 = (
            _Block(h, h, width, dropout),
            _Attention(h),
            _Block(h, h, width, dropout),
        )
        self.up = nn.ModuleList()
        for multiplier in reversed(multipliers):
            level_blocks = nn.ModuleList()
            for _ in range(blocks + 1):
                level_blocks.append(_Block(h + widths.pop(), channels * multiplier, width, dropout))
                h = channels * multiplier
            self.up.append(level_blocks)
        self.last_norm, self.last = _norm(h), nn.Conv2d(h, image_channels, 3, padding=1)

    def forward(self, x, log_snr):
        angles = log_snr[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.first(x)
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, embedding)
                skips.append(h)
            if level < len(self.down) - 1:
                h = F.avg_pool2d(h, 2)
                skips.append(h)
        h = self.middle2(self.attention(self.middle1(h, embedding)), embedding)
        for level, blocks in enumerate(self.up):
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if level < len(self.up) - 1:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
        return self.last(F.silu(self.last_norm(h)))
