"""The network of DR-FER: what its parts compute, what gradients reach, and which weights files it takes."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ferlab.config import Config
from ferlab.errors import FerlabError
from ferlab.model import DRFER, LocalBranch, folded, in_grey, load_backbone_weights, standardise


def network(backbone="small", size=32, **settings):
    torch.manual_seed(0)
    return DRFER(Config(backbone=backbone, size=size, attention_maps=2, local_dimensions=16, **settings), 5).eval()


def faces(count=3, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone, size, cell, width", [
    ("small", 48, 8, 256), ("small18", 32, 8, 256), ("resnet18", 64, 16, 512), ("resnet34", 32, 16, 512),
    ("resnet50", 64, 16, 2048),
])
def test_every_backbone_keeps_the_promises_of_its_features(backbone, size, cell, width):
    net = network(backbone, size)
    with torch.no_grad():
        features, pixels = net(faces(2, size)), net.reconstruct(faces(2, size))
    assert features.logits.shape == (2, 5) and features.embedding.shape == (2, 16 + width)
    assert features.attention.shape == (2, 2, size // cell, size // cell) and net.cell == cell
    assert torch.allclose(features.embedding.norm(dim=1), torch.ones(2), atol=1e-5)
    assert 0 <= features.attention.min() < features.attention.max() <= 1
    assert pixels.shape == (2, 3, size, size) and pixels.isfinite().all()


def test_embedding_is_the_normalised_concatenation_that_the_classifier_reads():
    net, x = network(), faces()
    seen = {}
    net.classifier.register_forward_hook(lambda module, args, output: seen.update(joined=args[0]))
    features = net(x)
    trunk = net.trunk(x)
    local, whole = net.local(trunk)[0], net.stage4(trunk).mean((2, 3))
    joined = torch.cat([local, whole], 1)
    assert torch.allclose(seen["joined"], joined, atol=1e-6)  # [L; G]
    assert torch.allclose(features.embedding, joined / joined.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(features.logits, joined @ net.classifier.weight.T + net.classifier.bias, atol=1e-5)


def test_local_vectors_are_attention_weighted_means_and_the_decoder_sees_what_is_attended():
    torch.manual_seed(0)
    branch = LocalBranch(channels=6, maps=2, dimensions=8).eval()
    x = torch.randn(3, 6, 4, 4)
    local, attention, attended = branch(x)
    for b in range(3):
        for k in range(2):
            weight = attention[b, k] / attention[b, k].sum()
            expected = branch.project((weight * x[b]).sum((1, 2)))
            assert torch.allclose(local[b, 4 * k : 4 * k + 4], expected, atol=1e-5)
    assert torch.allclose(attended, x * torch.maximum(attention[:, 0], attention[:, 1])[:, None])
    with torch.no_grad():
        branch.attention[-1].bias.fill_(-100)  # a map that looks nowhere
    assert branch(x)[0].isfinite().all() and branch(x)[2].abs().max() < 1e-6


@pytest.mark.parametrize("output, reached, untouched", [
    (lambda net, x: net(x).logits, ["trunk", "stage4", "local.", "classifier"], ["decoder"]),
    (lambda net, x: net(x).embedding, ["trunk", "stage4", "local."], ["decoder", "classifier"]),
    (lambda net, x: net.reconstruct(x), ["trunk", "local.attention", "decoder"], ["stage4", "local.p", "classifier"]),
])
def test_gradients_reach_each_part_that_a_loss_depends_on(output, reached, untouched):
    net = network().train()
    (output(net, faces(8)) * torch.randn(())).square().sum().backward()
    for name, parameter in net.named_parameters():
        if name.startswith(tuple(reached)):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        if name.startswith(tuple(untouched)):
            assert parameter.grad is None, name


def test_decoder_paints_each_cell_into_its_own_square():
    net = network()
    local_map = torch.zeros(1, 128, 4, 4)
    blank = net.decoder(local_map)
    local_map[0, :, 0, 3] = 5.0
    changed = (net.decoder(local_map) - blank).abs().sum((0, 1)) > 0
    assert changed[:8, 24:].any() and not changed[16:].any() and not changed[:, :16].any()  # a 3x3 convolution's reach


@pytest.mark.parametrize("backbone", ["small", "resnet18", "resnet50"])
def test_folded_network_says_the_same_without_batch_normalisation(backbone):
    network = DRFER(Config(backbone=backbone), 7)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # as after some training
        for values in (norm.weight, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
        for values in (norm.bias, norm.running_mean):
            nn.init.normal_(values, std=0.3)
    images = torch.randn(4, 3, 48, 48)
    network.train()
    fast = folded(network)
    assert network.training and sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == len(norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    with torch.no_grad():
        for one, other in zip(fast(images), network.eval()(images)):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_folding_leaves_alone_what_it_does_not_know():
    class Before(nn.Module):
        """Normalises before it convolves, under the usual names."""

        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv1(self.bn1(x))

    network = nn.Sequential(Before(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).eval()
    nn.init.uniform_(network[0].bn1.running_mean)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(network)(images), network(images))


def test_standardised_pixels_have_fixed_scale_and_any_size():
    grey = np.random.default_rng(0).integers(256, size=(4, 48, 48), dtype=np.uint8)
    x = standardise(torch.from_numpy(grey), 48)
    assert torch.allclose(x, (torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1) / 255 - 0.5) / 0.25)
    rgb = np.stack([grey, grey // 2, grey // 3], axis=-1)
    x = standardise(torch.from_numpy(rgb), 48)
    assert torch.allclose(x[:, 1], (torch.from_numpy(grey // 2) / 255 - 0.5) / 0.25)
    flat = torch.full((1, 100, 60), 51, dtype=torch.uint8)
    assert torch.allclose(standardise(flat, 32), torch.full((1, 3, 32, 32), (0.2 - 0.5) / 0.25), atol=1e-5)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(FerlabError, match="backbone"):
        network("vgg")
    with pytest.raises(FerlabError, match="torchvision"):
        network("small", weights="face.pth")


class Trunk(nn.Module):
    """A stand-in for a torchvision ResNet, small enough to write often."""

    def __init__(self, width=4):
        super().__init__()
        self.conv1, self.bn1, self.fc = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 10)


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"epoch": 3, "state_dict": state},
    lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    lambda state: {"state_dict": {f"module.backbone.{k}": v for k, v in state.items()}},
    lambda state: {f"backbone.{k}": v for k, v in state.items()} | {"head.weight": torch.ones(2)},
    lambda state: {k: v for k, v in state.items() if not k.startswith("fc.") and "num_batches" not in k},
    lambda state: {"args": {str(i): i for i in range(50)}, "net": state, "optimizer": {"state": {}, "groups": []}},
    lambda state: {"state_dict": {f"encoder.module.{k}": v for k, v in state.items()} | {"layer1.0.conv1.weight": 0}},
    lambda state: {f"module.encoder_q.{k}": v for k, v in state.items()} | {"module.encoder_k.conv1.weight": 0},
])
def test_weights_are_found_under_their_usual_wrappings(tmp_path, wrap):
    source, target = Trunk(), Trunk()
    source.bn1.running_mean.uniform_()
    head = target.fc.weight.clone()
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    load_backbone_weights(target, tmp_path / "weights.pth")
    for name in ("conv1.weight", "conv1.bias", "bn1.running_mean"):
        assert torch.equal(target.state_dict()[name], source.state_dict()[name])
    assert torch.equal(target.fc.weight, head)  # a head of other classes is not wanted


def test_safetensors_are_read_too(tmp_path):
    from safetensors.torch import save_file

    source, target = Trunk(), Trunk()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_backbone_weights(target, tmp_path / "weights.safetensors")
    assert torch.equal(target.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("content, told", [
    (lambda: {"conv1.weight": torch.ones(4, 3, 3, 3)}, "5 weights are missing"),
    (lambda: Trunk(8).state_dict(), "another shape"),
    (lambda: Trunk().state_dict() | {"layer3.2.conv1.weight": torch.ones(2)}, "1 have no place there.*layer3.2.conv1"),
    (lambda: Trunk().state_dict() | {"bn1.bias": torch.full((4,), torch.nan)}, "not finite.*bn1.bias"),
    (lambda: {"unrelated": torch.ones(2)}, "no weights of a ResNet"),
    (lambda: {"conv1.weight": "text"}, "missing"),
    (lambda: {"net.conv1.weight": torch.ones(2), 7: 1}, "begin with net.conv1.weight, 7.*do not fit"),
    (lambda: torch.ones(3), "no weights of a ResNet"),
    (lambda: [1, 2], "no weights of a ResNet"),
])
def test_weights_that_do_not_fit_are_refused_and_nothing_changes(tmp_path, content, told):
    torch.save(content(), tmp_path / "weights.pth")
    target = Trunk()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(FerlabError, match=told):
        load_backbone_weights(target, tmp_path / "weights.pth")
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_with_code_is_refused_and_its_code_does_not_run(tmp_path, save):
    marker = tmp_path / "code_has_run"
    save({"conv1.weight": RunsCode(str(marker))}, tmp_path / "weights.pth")
    with pytest.raises(FerlabError, match="plain weights"):
        load_backbone_weights(Trunk(), tmp_path / "weights.pth")
    assert not marker.exists()


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(FerlabError, match="no weights file"):
        load_backbone_weights(Trunk(), tmp_path / "absent.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("these are no weights")
        with pytest.raises(FerlabError, match="plain weights"):
            load_backbone_weights(Trunk(), tmp_path / name)


def test_a_resnet_takes_its_weights_from_a_file(tmp_path):
    import torchvision

    source = torchvision.models.resnet18()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "resnet18.pth")
    net = network("resnet18", 32, weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(net.trunk[1][0].conv1.weight, source.layer1[0].conv1.weight)
    assert torch.equal(net.stage4[1].bn2.weight, source.layer4[1].bn2.weight)
    with pytest.raises(FerlabError, match="does not fit"):
        network("resnet34", 32, weights=str(tmp_path / "resnet18.pth"))


def test_fine_patterns_become_grey_where_faces_are_made_smaller():
    board = torch.from_numpy((np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8))[None]
    assert standardise(board, 32)[..., 2:-2, 2:-2].abs().max() < 0.3


def test_grey_is_what_pillow_makes_of_colours():
    colour = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    grey = np.stack([Image.fromarray(face).convert("L") for face in colour])
    assert (in_grey(torch.from_numpy(colour)).numpy() == grey).mean() > 0.99


def test_decoder_is_a_rectified_convolution_and_a_square_for_each_cell():
    decoder = network().decoder
    x = torch.randn(1, 128, 2, 2, generator=torch.Generator().manual_seed(0))
    painted = decoder.paint(F.relu(decoder.hidden(x)))
    assert torch.allclose(decoder(x)[0, 1, 8:16, :8], painted[0, 64:128, 1, 0].view(8, 8), atol=1e-6)


def test_torchvisions_weights_are_asked_for(monkeypatch):
    import torchvision

    asked, resnet18 = [], torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights: (asked.append(weights), resnet18())[1])
    network("resnet18", 32, weights="torchvision"), network("resnet18", 32)
    assert asked == ["DEFAULT", None]
