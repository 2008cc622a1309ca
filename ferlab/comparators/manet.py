"""MA-Net: a global branch that looks at several scales, and a local branch that attends within four quadrants.

Zhao, Liu and Zhou, Learning Deep Global Multi-Scale and Local Attention Features for Facial Expression Recognition in
the Wild, IEEE Transactions on Image Processing 30, 2021.

    shared map = stages 1-2 of the backbone
    global: stages 3-4 of multi-scale blocks: channels in four groups x_1..x_4, y_1 = K_1 x_1,
            y_i = K_i(x_i + relu(y_{i-1})), and a second such chain from x_4 down to x_1; relu(sum of both + shortcut)
    local: each quadrant of the shared map through stages 3-4 of its own, whose residual blocks end with channel and
           spatial attention (CBAM); the four maps, put together, are averaged
    L = 0.6 CE(local, y) + 0.4 CE(global, y);   prediction: 0.6 local + 0.4 global logits

Source: this layout and the weights. Ours: width and depth follow the backbone (two blocks of a stage at most).
Left out: pretrained weights for the new stages. On a CPU a step costs about four times plain's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.model import BasicBlock, Features
from ferlab.training import Batch

LOCAL_WEIGHT, GLOBAL_WEIGHT = 0.6, 0.4


class MultiScaleBlock(BasicBlock):
    """A residual block whose second convolution is two chains over channel groups, in which each next group sees a
    wider field; one chain begins with the first group, the other with the last."""

    def __init__(self, channels_in: int, channels: int, stride: int, scales: int = 4):
        super().__init__(channels_in, channels, stride)
        del self.conv2, self.bn2
        width = channels // scales
        self.up, self.down = (nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            for _ in range(scales)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        groups = F.relu(self.bn1(self.conv1(x))).chunk(len(self.up), dim=1)
        up = chained(self.up, groups)
        down = chained(self.down, groups[::-1])[::-1]
        return F.relu(torch.cat(up, dim=1) + torch.cat(down, dim=1) + self.shortcut(x))


def chained(layers: nn.ModuleList, groups: Sequence[Tensor]) -> list[Tensor]:
    """What each layer makes of its group and of what the layer before it made, [B, width, h, w] each."""
    outputs: list[Tensor] = []
    for layer, group in zip(layers, groups, strict=True):
        outputs.append(layer(group + F.relu(outputs[-1]) if outputs else group))
    return outputs


class ConvolutionalAttention(nn.Module):
    """CBAM (Woo et al., ECCV 2018): a map times its channel attention, then times its spatial attention."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(channels, channels // reduction), nn.ReLU(inplace=True),
                                     nn.Linear(channels // reduction, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels, h, w] -> the attended map, and the spatial attention [B, 1, h, w] in (0, 1)."""
        weight = (self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))).sigmoid()
        x = x * weight[:, :, None, None]
        attention = self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return x * attention, attention


class AttentiveBlock(BasicBlock):
    """A residual block whose second convolution is attended to before the shortcut is added."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__(channels_in, channels, stride)
        self.attend = ConvolutionalAttention(channels)

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's map, and its spatial attention [B, 1, h, w] in (0, 1)."""
        out, attention = self.attend(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(out + self.shortcut(x)), attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(x)[0]


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

        def stages(block: type[BasicBlock], last_stride: int) -> nn.Sequential:
            """Stages 3 and 4 of such blocks."""
            return nn.Sequential(*(
                block(into if first else out, out, stride if first else 1)
                for into, out, stride in ((width2, width3, 2), (width3, width4, last_stride))
                for first in (True, False)[:depth]))

        self.scales = stages(MultiScaleBlock, 2)
        self.quadrants: Any = nn.ModuleList(stages(AttentiveBlock, 1) for _ in range(4))
        self.whole_classifier, self.local_classifier = (nn.Linear(width4, num_classes) for _ in range(2))
        self.embedding_dimensions = 2 * width4

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Features]:
        """Logits of the global and the local branch, [B, C] each, and the features that put them together."""
        shared = self.shared(x)
        whole = self.scales(shared).mean((2, 3))
        quadrants = [q for half in shared.chunk(2, dim=2) for q in half.chunk(2, dim=3)]  # row by row
        maps, attention = zip(*(blocks[-1].attended(blocks[:-1](q))
                                for q, blocks in zip(quadrants, self.quadrants, strict=True)), strict=True)
        local = four_together(maps).mean((2, 3))
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
