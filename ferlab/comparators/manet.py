"""MA-Net: a global branch that looks at several scales, and a local branch that attends within four quadrants.

Zhao, Liu and Zhou, Learning Deep Global Multi-Scale and Local Attention Features for Facial Expression Recognition in
the Wild, IEEE Transactions on Image Processing 30, 2021.

    shared map = stages 1-2 of the backbone
    global: stages 3-4 of multi-scale blocks: channels in four groups x_1..x_4, y_1 = K_1 x_1, y_i = K_i(x_i + y_{i-1})
    local: each quadrant of the shared map through its own convolutions and channel and spatial attention (CBAM)
    L = 0.6 CE(global, y) + 0.4 CE(local, y);   prediction: 0.6 global + 0.4 local logits

Source: this layout and the weights. Ours: width and depth follow the backbone (two blocks of a stage at most), the
quadrants are pooled and joined. Left out: pretrained weights for the new stages.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.model import BasicBlock, Features
from ferlab.training import Batch

GLOBAL_WEIGHT, LOCAL_WEIGHT = 0.6, 0.4


class MultiScaleBlock(nn.Module):
    """Convolution, then a chain of convolutions over channel groups, so that each next group sees a wider field."""

    def __init__(self, channels_in: int, channels: int, stride: int, scales: int = 4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
                                   nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        width = channels // scales
        self.chain = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            for _ in range(scales))
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                                      nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for group, layer in zip(self.first(x).chunk(len(self.chain), dim=1), self.chain, strict=True):
            outputs.append(F.relu(layer(group + outputs[-1] if outputs else group)))
        return F.relu(torch.cat(outputs, dim=1) + self.shortcut(x))


class ConvolutionalAttention(nn.Module):
    """CBAM (Woo et al., ECCV 2018): a map times its channel attention, then times its spatial attention."""

    def __init__(self, channels: int, reduction: int = 8):
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(channels, channels // reduction), nn.ReLU(inplace=True),
                                     nn.Linear(channels // reduction, channels))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels, h, w] -> the attended map, and the spatial attention [B, 1, h, w] in (0, 1)."""
        weight = (self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))).sigmoid()
        x = x * weight[:, :, None, None]
        attention = self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return x * attention, attention


class MANetNetwork(nn.Module):
    """embedding: [local; global], normalised; attention: the four quadrants' spatial attention, put together."""

    by_face = ("branches",)

    def __init__(self, config: Config, num_classes: int):
        super().__init__()
        backbone = Backbone(config, num_classes)
        self.size, self.num_classes = config.size, num_classes
        self.shared = backbone.trunk[:-1]  # stem, stages 1 and 2
        stage3, width4 = backbone.trunk[-1], backbone.embedding_dimensions - config.local_dimensions
        width2, width3 = stage3[0].conv1.in_channels, backbone.local.project.in_features
        depth = min(2, len(stage3))
        self.scales = nn.Sequential(*(
            MultiScaleBlock(into if block == 0 else out, out, 2 if block == 0 else 1)
            for into, out in ((width2, width3), (width3, width4)) for block in range(depth)))
        self.quadrants = nn.ModuleList(BasicBlock(width2, width3, 2) for _ in range(4))
        self.attend = nn.ModuleList(ConvolutionalAttention(width3) for _ in range(4))
        self.whole_classifier, self.local_classifier = (
            nn.Linear(width, num_classes) for width in (width4, 4 * width3))
        self.embedding_dimensions = width4 + 4 * width3

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Features]:
        """Logits of the global and the local branch, [B, C] each, and the features that put them together."""
        shared = self.shared(x)
        whole = self.scales(shared).mean((2, 3))
        quadrants = [q for half in shared.chunk(2, dim=2) for q in half.chunk(2, dim=3)]  # row by row
        attended, attention = zip(*(
            attend(block(q)) for q, block, attend in zip(quadrants, self.quadrants, self.attend, strict=True)),
            strict=True)
        local = torch.cat([part.mean((2, 3)) for part in attended], dim=1)
        joined = torch.cat([local, whole], dim=1)
        logits = self.whole_classifier(whole), self.local_classifier(local)
        return *logits, Features(
            GLOBAL_WEIGHT * logits[0] + LOCAL_WEIGHT * logits[1], F.normalize(joined.float(), dim=1),
            four_together(attention))

    def forward(self, x: Tensor) -> Features:
        return self.branches(x)[2]


class MANet(Comparator):
    network_class = MANetNetwork

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        whole, local, _ = network.branches(batch.images)
        targets = self.targets[batch.index]
        return {"global": GLOBAL_WEIGHT * self.cross_entropy(whole, targets),
                "local": LOCAL_WEIGHT * self.cross_entropy(local, targets)}


def four_together(quadrants: tuple[Tensor, ...]) -> Tensor:
    """One map [B, c, 2h, 2w] of the four quadrants [B, c, h, w], given row by row."""
    return torch.cat([torch.cat(quadrants[:2], dim=3), torch.cat(quadrants[2:], dim=3)], dim=2)
