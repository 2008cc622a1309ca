"""Masked image modelling: exact ratios, uniform positions, hidden pixels only, BatchNorm left alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ferlab.errors import FerlabError
from ferlab.masking import (
    batch_statistics_untouched,
    hide,
    masked_reconstruction_loss,
    patches_to_pixels,
    random_patch_mask,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(1, 14), st.floats(0, 1))
def test_every_image_hides_exactly_the_ratio(batch, grid, ratio):
    mask = random_patch_mask(batch, grid, ratio, torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool and mask.shape == (batch, grid, grid)
    assert (mask.sum((1, 2)) == round(ratio * grid * grid)).all()  # True = hidden


def test_masks_follow_the_generator():
    draw = [random_patch_mask(8, 6, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert len({image.numpy().tobytes() for image in draw[0]}) == 8  # images differ from each other


def test_every_position_is_hidden_equally_often_and_independently():
    mask = random_patch_mask(20_000, 4, 0.25, torch.Generator().manual_seed(3)).flatten(1).double()
    expected, sigma = 0.25, np.sqrt(0.25 * 0.75 / 20_000)
    assert (mask.mean(0) - expected).abs().max() < 5 * sigma
    pairs = (mask.T @ mask / 20_000)[~torch.eye(16, dtype=torch.bool)]
    assert (pairs - 0.25 * 3 / 15).abs().max() < 5 * np.sqrt(0.05 * 0.95 / 20_000)  # without replacement


@pytest.mark.parametrize("grid, ratio", [(6, -0.1), (6, 1.1), (6, float("nan")), (0, 0.5)])
def test_impossible_masks_are_refused(grid, ratio):
    with pytest.raises(FerlabError, match="mask"):
        random_patch_mask(2, grid, ratio)


def test_patches_become_squares_of_pixels():
    mask = torch.tensor([[[True, False], [False, False]]])
    pixels = patches_to_pixels(mask, 6)
    assert pixels.shape == (1, 1, 6, 6)
    assert pixels[0, 0, :3, :3].all() and pixels.sum() == 9
    with pytest.raises(FerlabError, match="tile"):
        patches_to_pixels(mask, 7)


def test_hiding_sets_hidden_pixels_to_the_mean_and_leaves_the_others():
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 1
    mask = random_patch_mask(3, 4, 0.5, torch.Generator().manual_seed(1))
    hidden, pixels = hide(images, mask), patches_to_pixels(mask, 12).expand_as(images)
    assert (hidden[pixels] == 0).all() and torch.equal(hidden[~pixels], images[~pixels])


def a_reconstruction():
    generator = torch.Generator().manual_seed(4)
    predicted, images = (torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return predicted, images, random_patch_mask(2, 4, 0.25, generator)


def test_loss_is_the_mean_square_over_hidden_pixels_only():
    predicted, images, mask = a_reconstruction()
    pixels = patches_to_pixels(mask, 8).expand_as(images)
    loss = masked_reconstruction_loss(predicted, images, mask)
    assert loss.item() == pytest.approx(((predicted - images)[pixels] ** 2).mean().item(), rel=1e-12)
    changed = torch.where(pixels, predicted, 1e3)
    assert masked_reconstruction_loss(changed, images, mask) == loss
    assert masked_reconstruction_loss(predicted, torch.where(pixels, images, -7.0), mask) == loss
    worse = torch.where(pixels, predicted + 10, predicted)
    assert masked_reconstruction_loss(worse, images, mask) > loss
    assert masked_reconstruction_loss(predicted, images, torch.zeros_like(mask)) == 0


def test_loss_gradient_is_the_numerical_one_and_zero_on_visible_pixels():
    predicted, images, mask = a_reconstruction()
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: masked_reconstruction_loss(p, images, mask), [predicted])
    masked_reconstruction_loss(predicted, images, mask).backward()
    pixels = patches_to_pixels(mask, 8).expand_as(images)
    assert (predicted.grad[~pixels] == 0).all() and (predicted.grad[pixels] != 0).all()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_masked_copies_leave_batch_norm_as_it_was(training, momentum):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum)).train()
    faces = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    network(faces)
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(faces * 0.1).detach()
    network.load_state_dict(before)
    with batch_statistics_untouched(network):
        inside = network(faces * 0.1)
    assert torch.equal(inside, expected)  # normalised by the batch as ever
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.train()(faces * 0.1)
    assert not torch.equal(network[1].running_var, before["1.running_var"])  # afterwards it learns again


def test_batch_norm_learns_again_after_an_error():
    network = nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError), batch_statistics_untouched(network):
        raise RuntimeError
    network(torch.randn(4, 2))
    assert network.num_batches_tracked == 1


def test_every_kind_of_batch_norm_is_left_as_it_was():
    kinds = (nn.BatchNorm1d(2), torch.randn(8, 2)), (nn.BatchNorm3d(2), torch.randn(8, 2, 2, 2, 2))
    for norm, faces in kinds:
        with batch_statistics_untouched(norm):
            norm(faces)
        assert norm.num_batches_tracked == 0 and norm.track_running_stats
    of_the_batch = nn.BatchNorm2d(2, track_running_stats=False)
    with batch_statistics_untouched(of_the_batch):
        pass
    assert not of_the_batch.track_running_stats
