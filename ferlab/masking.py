"""Masked image modelling: hide random patches, predict their pixels, count hidden patches only.

DR-FER predicts randomly masked patches as an auxiliary task of the same network, so that it attends to facial units.
Patch size, ratio and the loss on standardised pixels are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.errors import FerlabError


def random_patch_mask(batch: int, grid: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Random patches to hide: bool [batch, grid, grid], True = hidden.

    Every image hides the same number of patches, round(ratio * grid²), drawn without replacement. The mask lies on the
    generator's device (the CPU without one).

    Raises FerlabError for a ratio outside [0, 1] or a grid below 1.
    """
    if not 0 <= ratio <= 1:
        raise FerlabError(f"The mask ratio is {ratio}: give a share of hidden patches between 0 and 1.")
    if grid < 1:
        raise FerlabError(f"The mask grid is {grid}: give at least one patch a side.")
    device = generator.device if generator is not None else "cpu"
    score = torch.rand(batch, grid * grid, generator=generator, device=device)
    rank = score.argsort(dim=1).argsort(dim=1)
    return (rank < round(ratio * grid * grid)).view(batch, grid, grid)


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Images [B, C, H, W] with the patches of ``mask`` [B, grid, grid] (True = hidden) set to 0, the mean colour."""
    return images * ~patches_to_pixels(mask, images.shape[-1])


def patches_to_pixels(mask: Tensor, size: int) -> Tensor:
    """A mask of patches [B, grid, grid] as a mask of pixels [B, 1, size, size]; size is a multiple of grid.

    Raises FerlabError where the patches do not tile the image.
    """
    grid = mask.shape[-1]
    if size % grid:
        raise FerlabError(f"{grid} patches a side do not tile {size} pixels: choose a patch size that divides {size}.")
    patch = size // grid
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2).unsqueeze(1)


def masked_reconstruction_loss(predicted: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of hidden patches only (He et al., MAE, CVPR 2022), a scalar >= 0.

    predicted, images: [B, C, H, W], images standardised; mask: bool [B, grid, grid], True = hidden. 0 where nothing is
    hidden.
    """
    hidden = patches_to_pixels(mask, images.shape[-1])
    error = F.mse_loss(predicted, images, reduction="none") * hidden
    return error.sum() / (hidden.sum() * images.shape[1]).clamp(min=1)


@contextmanager
def batch_statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm normalises by the batch at hand and leaves the running statistics as they are.

    Masked copies have other statistics than the faces that inference sees.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    norms = [module for module in network.modules() if isinstance(module, kinds) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
