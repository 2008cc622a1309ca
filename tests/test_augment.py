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


def test_faces_are_flipped_turned_zoomed_and_shifted_within_their_limits():
    place = torch.linspace(1 / 40 - 1, 1 - 1 / 40, 40)
    y, x = torch.meshgrid(place, place, indexing="ij")
    out = augment(1000 * torch.stack([x, y, torch.ones_like(x)]).repeat(400, 1, 1, 1), 1.0, seeded())
    middle = (x.abs() < 0.5) & (y.abs() < 0.5)  # of which nothing comes from beyond the edge
    matrix, shift = [], []
    for face in out[:, :, middle].double():
        kept = face[2] != 0  # not erased
        if kept.sum() < 100:
            continue
        ways = torch.stack([x[middle], y[middle], torch.ones(int(middle.sum()))], 1).double()[kept]
        found = torch.linalg.lstsq(ways, (face[:2] / face[2])[:, kept].T).solution  # light changes all alike
        matrix.append(found[:2].T), shift.append(found[2])
    matrix, shift = torch.stack(matrix), torch.stack(shift)
    flip = matrix.det().sign()
    zoom, angle = matrix.det().abs().sqrt(), torch.rad2deg(torch.atan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    expected = torch.stack([torch.stack([flip * matrix[:, 1, 1], matrix[:, 0, 1]], 1),
                            torch.stack([-flip * matrix[:, 0, 1], matrix[:, 1, 1]], 1)], 1)
    assert torch.allclose(matrix, expected, atol=0.01)  # a turn and a zoom alone, and no shear
    for values, limit in ((angle, 12), (zoom - 1, 0.12), (shift[:, 0], 0.16), (shift[:, 1], 0.16)):
        assert 0.9 * limit < values.abs().max() < 1.02 * limit
    assert abs(torch.corrcoef(shift.T)[0, 1]) < 0.2


def test_squares_are_as_rare_as_the_strength_is_low():
    hit = (augment(torch.full((2000, 3, 16, 16), 100.0), 0.3, seeded()) == 0).flatten(1).any(1)
    assert abs(hit.float().mean() - 0.15) < 0.03


def test_squares_lie_anywhere():
    erased = (augment(torch.full((600, 3, 64, 64), 100.0), 1.0, seeded()) == 0)[:, 0].float()
    erased = erased[erased.flatten(1).any(1)]
    middle = torch.stack([(erased.sum(d) * torch.arange(64)).sum(1) / erased.sum((1, 2)) for d in (1, 2)])
    assert abs(torch.corrcoef(middle)[0, 1]) < 0.2 and (middle.std(1) > 10).all()


def test_brightness_changes_by_up_to_half_a_standard_deviation():
    light = augment(torch.zeros(600, 3, 8, 8), 1.0, seeded())[:, 0].flatten(1).abs().amax(1)
    assert 0.45 < light.max() <= 0.5


def test_contrast_follows_the_strength():
    light = augment(torch.full((600, 3, 8, 8), 100.0), 0.3, seeded())[:, 0].flatten(1).amax(1)
    assert 106 < light.max() < 108
