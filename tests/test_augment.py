"""Augmentation: reproducible, per image, within its limits; strength 0 is flips only."""

import numpy as np
import pytest
import torch

from ferlab.augment import augment


def faces(count=64, height=32, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_generator_decides_everything():
    images = faces()
    original, state = images.clone(), torch.get_rng_state()
    first, again, other = (augment(images, 1.0, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(images, original) and torch.equal(torch.get_rng_state(), state)


def test_strength_zero_flips_a_half_and_changes_nothing_else():
    images = faces(1000, 16, 16)
    out = augment(images, 0.0, seeded())
    same = (out - images).abs().amax((1, 2, 3)) < 1e-4
    flipped = (out - images.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (same ^ flipped).all()
    assert abs(flipped.float().mean().item() - 0.5) < 5 * 0.5 / np.sqrt(1000)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(1, 32, 32), (7, 48, 40)])
def test_any_strength_gives_finite_faces_of_the_same_shape_that_differ(strength, shape):
    images = faces(*shape)
    out = augment(images, strength, seeded())
    assert out.shape == images.shape and out.isfinite().all()
    assert out.abs().max() <= images.abs().max() * (1 + 0.25 * strength) + 0.5 * strength + 1e-5
    assert ((out - images).abs().mean((1, 2, 3)) > 0.05).all()


def test_images_are_changed_independently():
    out = augment(faces(1).expand(64, -1, -1, -1), 1.0, seeded())
    assert len({image.numpy().tobytes() for image in out}) == 64
    alone = augment(faces(64)[:1], 0.0, seeded())
    assert alone.shape == (1, 3, 32, 32)


def test_a_half_of_the_faces_loses_one_square_of_the_stated_size():
    # on images of constant colour geometry shows nothing, and light keeps them constant
    out = augment(torch.full((600, 3, 64, 64), 100.0), 1.0, seeded())
    erased = (out == 0).all(1)
    hit = erased.any((1, 2))
    assert 0.4 < hit.float().mean() < 0.55
    rows, columns = erased.any(2).sum(1)[hit], erased.any(1).sum(1)[hit]
    assert rows.max() <= 0.4 * 64 + 1 and columns.max() <= 0.4 * 64 + 1
    assert torch.equal(erased.sum((1, 2))[hit], rows * columns)  # full rectangles
    light = out[~hit][:, 0, 0, 0]
    assert 70 < light.min() < 80 and 120 < light.max() < 130


def test_the_centre_stays_near_the_centre():
    spot = torch.zeros(300, 3, 65, 65)
    spot[:, :, 31:34, 31:34] = 100.0
    out = augment(spot, 1.0, seeded())[:, 0]
    place = out.flatten(1).argmax(1)
    found = out.flatten(1).max(1).values > 30  # not erased
    offset = torch.stack([place // 65, place % 65], 1)[found] - 32
    assert found.float().mean() > 0.85
    assert offset.abs().max() <= np.ceil(0.08 * 65 * 1.12) + 2  # the shift, and half of the spot
    assert offset.float().std(0).min() > 1.5
