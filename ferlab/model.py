"""The network of DR-FER: ResNet trunk, Global Branch, Local Branch of attention maps, decoder, one classifier."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ferlab.config import Config
from ferlab.errors import FerlabError

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25

Network = TypeVar("Network", bound=nn.Module)


class Features(NamedTuple):
    """What the network makes of a batch.

    logits: [B, C]; embedding: V = [L; G] / ||[L; G]||, [B, D]; attention: [B, K, h, w] in [0, 1].
    """

    logits: Tensor
    embedding: Tensor
    attention: Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)).add_(self.shortcut(x)), inplace=True)


def small_resnet(blocks: tuple[int, int, int, int], widths: tuple[int, ...] = (32, 64, 128, 256)):
    """A ResNet for faces of about 48 pixels on a CPU: (stem and stages 1-3, stage 4, width of stage 3, of stage 4)."""
    stages, channels = [], widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        layers = []
        for block in range(count):
            layers.append(BasicBlock(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = width
        stages.append(nn.Sequential(*layers))
    stem = nn.Sequential(
        nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
    )
    return nn.Sequential(stem, *stages[:3]), stages[3], widths[2], widths[3]


def _torchvision_resnet(name: str, weights: str | None):
    import torchvision

    try:
        net = getattr(torchvision.models, name)(weights="DEFAULT" if weights == "torchvision" else None)
    except (OSError, RuntimeError) as error:
        raise FerlabError(
            f"torchvision's weights of {name} could not be fetched ({error}): go online once, or give a file."
        ) from error
    if weights not in (None, "torchvision"):
        load_backbone_weights(net, Path(weights))
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    trunk = nn.Sequential(stem, net.layer1, net.layer2, net.layer3)
    width4 = net.fc.in_features
    return trunk, net.layer4, width4 // 2, width4


class LocalBranch(nn.Module):
    """K learned attention maps over the stage-3 map; each pools the map into one local vector.

    The maps are sigmoids, so that several may look at one place and a map may look nowhere (ours).
    """

    def __init__(self, channels: int, maps: int, dimensions: int):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1, bias=False), nn.BatchNorm2d(channels // 2), nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, maps, 1),
        )
        self.project = nn.Linear(channels, dimensions // maps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, channels, h, w] -> L [B, dimensions], attention [B, K, h, w], attended map [B, channels, h, w]."""
        attention = self.attention(x).sigmoid()
        weight = attention / attention.sum((2, 3), keepdim=True).clamp(min=1e-6)
        pooled = torch.einsum("bkhw,bchw->bkc", weight, x)
        attended = x * attention.amax(1, keepdim=True)
        return self.project(pooled).flatten(1), attention, attended


class Decoder(nn.Module):
    """Predicts pixels from the attended stage-3 map: one 3x3 convolution, then every cell paints its square."""

    def __init__(self, channels: int, cell: int):
        super().__init__()
        self.hidden = nn.Conv2d(channels, channels, 3, padding=1)
        self.paint = nn.Conv2d(channels, 3 * cell * cell, 1)
        self.cell = cell

    def forward(self, local_map: Tensor) -> Tensor:
        """[B, channels, h, w] -> standardised pixels [B, 3, h * cell, w * cell]."""
        return F.pixel_shuffle(self.paint(F.relu(self.hidden(local_map))), self.cell)


class DRFER(nn.Module):
    """Trunk (stages 1-3) -> Global Branch (stage 4, pooling -> G) and Local Branch (attention -> L) -> classifier.

    Input: float [B, 3, size, size], standardised by ``standardise``. by_face: functions of faces that return rows for
    each, which several processes share (``ferlab.parallel``).
    """

    by_face: tuple[str, ...] = ("forward", "reconstruct")

    def __init__(self, config: Config, num_classes: int):
        super().__init__()
        self.size, self.num_classes = config.size, num_classes
        if config.backbone in ("small", "small18"):
            if config.weights is not None:
                raise FerlabError(f"weights are for torchvision's ResNets, not for the backbone {config.backbone}: "
                                  "add backbone=resnet18.")
            blocks = (1, 1, 1, 1) if config.backbone == "small" else (2, 2, 2, 2)
            self.trunk, self.stage4, width3, width4 = small_resnet(blocks)
        else:
            self.trunk, self.stage4, width3, width4 = _torchvision_resnet(config.backbone, config.weights)
        self.local = LocalBranch(width3, config.attention_maps, config.local_dimensions)
        self.decoder = Decoder(width3, self.cell)
        self.embedding_dimensions = config.local_dimensions + width4
        self.classifier = nn.Linear(self.embedding_dimensions, num_classes)

    @property
    def cell(self) -> int:
        """Pixels a side that one cell of the stage-3 map stands for."""
        return 8 if isinstance(self.trunk[0][-1], nn.ReLU) else 16

    def forward(self, x: Tensor) -> Features:
        shared = self.trunk(x)
        local, attention, _ = self.local(shared)
        whole = self.stage4(shared).mean((2, 3))  # G, [B, width4]
        joined = torch.cat([local, whole], dim=1)  # [L; G]
        return Features(self.classifier(joined), F.normalize(joined.float(), dim=1), attention)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] predicted from (masked) faces by trunk, Local Branch and decoder."""
        return self.decoder(self.local(self.trunk(x))[2])


def folded(network: Network) -> Network:
    """A copy for evaluation in which a batch normalisation that follows a convolution is part of it, and costs nothing.

    That is so in nn.Sequential and in residual blocks, whose order is known; what else a network has stays as it is.
    Making the copy takes as long as evaluating a few faces.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        children = dict(module.named_children())
        if type(module).forward is nn.Sequential.forward:
            pairs = list(pairwise(children))
        elif isinstance(module, BasicBlock) or type(module).__module__ == "torchvision.models.resnet":
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        else:
            continue
        for name, following in pairs:
            convolution, norm = children.get(name), children.get(following)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, following, nn.Identity())
    return network


def in_grey(images: Tensor) -> Tensor:
    """uint8 [B, H, W] of images uint8 [B, H, W, 3]: their luma (ITU-R BT.601); of grey ones [B, H, W] themselves."""
    if images.ndim == 3:
        return images
    return (images.float() @ torch.tensor([0.299, 0.587, 0.114], device=images.device)).round().byte()


def standardise(images: Tensor, size: int) -> Tensor:
    """uint8 [B, H, W] or [B, H, W, 3] -> float [B, 3, size, size], about zero mean and unit spread."""
    x = images.unsqueeze(1).expand(-1, 3, -1, -1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    x = (x.float() / 255 - PIXEL_MEAN) / PIXEL_STD
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def _dict_with(found: Any, ending: str) -> dict[str, Any] | None:
    """The first dict in nested ones that has a key with this ending."""
    if not isinstance(found, dict):
        return None
    if any(str(key).endswith(ending) for key in found):
        return {str(key): value for key, value in found.items()}
    return next((each for value in found.values() if (each := _dict_with(value, ending)) is not None), None)


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Fill a torchvision ResNet from a checkpoint of a ResNet of the same depth (ImageNet, face recognition).

    The file is read without running code. Whatever wraps the weights, {"state_dict": …} or a prefix of their names
    ("module.", "backbone."), is taken off, and heads are ignored. Raises FerlabError if the file is missing or
    unreadable, or if another weight is absent, misshapen or not finite, or one of a deeper ResNet.
    """
    if not path.is_file():
        raise FerlabError(f"There is no weights file at {path}: give the path of a .pth or .safetensors checkpoint.")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FerlabError(
            f"{path} cannot be read as plain weights ({type(error).__name__}), as it is damaged or holds more than "
            "tensors. If you trust it, save its weights alone: found = torch.load(path, weights_only=False), then "
            "torch.save(found.state_dict(), new_path) of a network, or of what the found dictionary calls state_dict."
        ) from error
    wanted = {k: v for k, v in backbone.state_dict().items() if not k.startswith("fc.")}
    first = next(iter(wanted))
    state = _dict_with(state, first)
    if state is None:
        raise FerlabError(f"{path} holds no weights of a ResNet by name: save its state_dict with torch.save.")
    prefixes = [key.removesuffix(first) for key in state if f".{key}".endswith(f".{first}")]
    prefix = max(prefixes, key=lambda each: sum(each + key in state for key in wanted), default="")
    plain = {key.removeprefix(prefix): value for key, value in state.items()
             if key.startswith(prefix) and isinstance(value, Tensor)}
    missing = [k for k in wanted if k not in plain and not k.endswith("num_batches_tracked")]
    misshapen = [k for k in wanted if k in plain and plain[k].shape != wanted[k].shape]
    deeper = [k for k in plain if re.match(r"layer\d+\.\d+\.", k) and k not in wanted]  # a ResNet-34 for a ResNet-18
    if problems := missing + misshapen + deeper:
        raise FerlabError(
            f"{path} does not fit this backbone: {len(missing)} weights are missing, {len(misshapen)} have another "
            f'shape and {len(deeper)} have no place there, the first is "{problems[0]}" (its own begin with '
            f"{', '.join(list(state)[:3])}); choose the backbone that the checkpoint was made with; other networks "
            "than torchvision's ResNets do not fit."
        )
    if broken := [k for k in wanted if k in plain and not plain[k].isfinite().all()]:
        raise FerlabError(f'{path} holds numbers that are not finite, the first in "{broken[0]}": it is of a training '
                          "that diverged; take another checkpoint.")
    backbone.load_state_dict({k: plain[k] for k in wanted if k in plain}, strict=False)
