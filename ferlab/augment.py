"""Batched augmentation on the device that trains: flip, crop, rotation, light, erasing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Randomly changed copies of standardised faces [B, 3, H, W], each image by its own draw.

    Always: horizontal flip with probability 1/2. Times ``strength`` (0 = none, 1 = usual): rotation within 12 degrees,
    zoom within 12 %, shift within 8 % of the width, contrast within 25 %, brightness within half a standard deviation,
    and, in a half of the images, one square of 15-40 % of the width erased to 0 (Zhong et al., Random Erasing, AAAI
    2020). The generator lies on the CPU.
    """
    batch, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(batch, *shape, generator=generator) * (high - low) + low
        return draw.to(images.device, non_blocking=True)

    flip = 1 - 2 * (uniform(0, 1) < 0.5).float()
    angle = uniform(-1, 1) * math.radians(12) * strength
    zoom = 1 + uniform(-1, 1) * 0.12 * strength
    shift = uniform(-1, 1, 2) * 0.16 * strength
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    x = torch.linspace(1 / width - 1, 1 - 1 / width, width, device=images.device)  # centres of pixels
    y = torch.linspace(1 / height - 1, 1 - 1 / height, height, device=images.device)[:, None]

    def mapped(of_x: Tensor, of_y: Tensor, moved: Tensor) -> Tensor:
        of_x, of_y, moved = (each.view(-1, 1, 1) for each in (of_x, of_y, moved))
        return of_x * x + (of_y * y + moved)  # [B, H, W]; on a CPU F.affine_grid takes longer than all the rest

    grid = torch.stack([mapped(cos * flip, -sin, shift[:, 0]), mapped(sin * flip, cos, shift[:, 1])], 3)
    images = F.grid_sample(images.contiguous(), grid, padding_mode="reflection", align_corners=False)
    if strength == 0:
        return images

    contrast = 1 + uniform(-1, 1, 1, 1, 1) * 0.25 * strength
    brightness = uniform(-1, 1, 1, 1, 1) * 0.5 * strength
    images.mul_(contrast).add_(brightness)

    side = uniform(0.15, 0.4) * (uniform(0, 1) < 0.5 * min(strength, 1))
    middle = uniform(0, 1, 2)
    rows = torch.linspace(0, 1, height, device=images.device)
    columns = torch.linspace(0, 1, width, device=images.device)
    inside_rows = (rows - middle[:, :1]).abs() < side[:, None] / 2  # [B, H]
    inside_columns = (columns - middle[:, 1:]).abs() < side[:, None] / 2  # [B, W]
    return images.masked_fill_((inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1), 0.0)
