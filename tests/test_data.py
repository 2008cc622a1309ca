import dataclasses

import numpy as np
import pytest
import torch

from ferlab.data import NOISE_KINDS, FaceSet, ImageView, cache_directory, human_confusion, inject_noise
from ferlab.errors import FerlabError

EIGHT = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


def some_labels(count=8000, classes=8):
    return np.random.default_rng(1).integers(classes, size=count)


def some_faces(count=40, classes=EIGHT, **more):
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    return FaceSet(images=images, labels=np.arange(count) % len(classes), classes=classes, **more)


# ------------------------------------------------------------------------------------------------------- noise

@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("rate", [0, 0.1, 0.3, 0.6, 1])
def test_the_asked_share_of_labels_is_wrong(kind, rate):
    labels = some_labels()
    noisy = inject_noise(labels, kind, rate, 8, seed=3)
    assert noisy.dtype == np.int64 and noisy.shape == labels.shape
    assert ((noisy >= 0) & (noisy < 8)).all()
    share = (noisy != labels).mean()
    assert share == pytest.approx(rate, abs=0.02 if kind == "annotators" else 0.5 / len(labels))


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_is_repeatable_and_leaves_its_input_alone(kind):
    labels = some_labels(500)
    before = labels.copy()
    first, again, other = (inject_noise(labels, kind, 0.4, 8, seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and (labels == before).all()


def test_symmetric_noise_reaches_every_other_class_equally():
    labels = np.zeros(70_000, int)
    counts = np.bincount(inject_noise(labels, "symmetric", 1.0, 8, seed=0), minlength=8)
    assert counts[0] == 0
    assert counts[1:] == pytest.approx(np.full(7, 10_000), rel=0.05)


def test_asymmetric_noise_follows_the_confusion():
    labels = some_labels(40_000, 3)
    confusion = np.array([[5, 1, 0], [0, 0, 1], [1, 3, 9]])
    noisy = inject_noise(labels, "asymmetric", 0.5, 3, seed=0, confusion=confusion)
    moved = np.zeros((3, 3), int)
    np.add.at(moved, (labels, noisy), 1)
    assert moved[0, 2] == moved[1, 0] == 0
    assert moved[2, 1] / moved[2, 0] == pytest.approx(3, rel=0.1)
    ring = inject_noise(labels, "asymmetric", 1.0, 3, seed=0)  # no expressions: c is mistaken for c + 1
    assert (ring == (labels + 1) % 3).all()


def test_a_class_that_is_never_mistaken_keeps_its_labels():
    labels = some_labels(1000, 2)
    noisy = inject_noise(labels, "asymmetric", 0.9, 2, seed=0, confusion=np.array([[1, 0], [1, 0]]))
    assert (noisy == 0).all()


def test_human_confusion_goes_by_name():
    eight, rafdb = human_confusion(EIGHT), human_confusion(("surprise", "fear", "disgust", "happiness"))
    assert eight.shape == (8, 8) and np.allclose(eight.sum(1), 1) and (np.diag(eight) == 0).all()
    for wrong, instead in (("fear", "surprise"), ("sadness", "neutral"), ("disgust", "anger"), ("surprise", "fear")):
        assert eight[EIGHT.index(wrong)].argmax() == EIGHT.index(instead)
    assert rafdb[1].argmax() == 0 and np.allclose(rafdb.sum(1), 1)


def test_annotators_err_more_on_some_faces():
    labels = np.repeat(some_labels(400), 20)[:8000]
    repeats = np.stack([inject_noise(labels, "annotators", 0.3, 8, seed) for seed in range(3)])
    assert len({row.tobytes() for row in repeats}) == 3
    mixture = np.full((8000, 8), 1e-6)
    mixture[np.arange(8000), labels] = 1
    other = (labels + 3) % 8
    mixture[:4000] *= 0.5
    mixture[np.arange(4000), other[:4000]] = 0.5
    noisy = inject_noise(labels, "annotators", 0.3, 8, seed=0, distribution=mixture)
    wrong = noisy != labels
    assert wrong.mean() == pytest.approx(0.3, abs=0.02)
    assert wrong[:4000].mean() > 3 * wrong[4000:].mean()
    assert (noisy == other)[:4000][wrong[:4000]].mean() > 0.85  # a wrong vote is for what the face also shows


def test_noise_keeps_the_kind_of_its_input():
    labels = torch.tensor(some_labels(100))
    noisy = inject_noise(labels, "symmetric", 0.5, 8, seed=0)
    assert isinstance(noisy, torch.Tensor) and noisy.dtype == torch.int64 and (noisy != labels).sum() == 50
    assert (noisy.numpy() == inject_noise(labels.numpy(), "symmetric", 0.5, 8, seed=0)).all()
    assert inject_noise(labels.to(torch.uint8), "annotators", 0.5, 8, seed=0).dtype == torch.uint8
    assert inject_noise([0, 1, 2], "symmetric", 0, 3, seed=0).tolist() == [0, 1, 2]
    assert len(inject_noise(np.array([], int), "annotators", 0.5, 8, seed=0)) == 0


@pytest.mark.parametrize(("arguments", "said"), [
    (([0, 1], "symetric", 0.1, 2), "symmetric, asymmetric, annotators"),
    (([0, 1], "symmetric", 1.1, 2), "between 0 and 1"),
    (([0, 1], "symmetric", -0.1, 2), "between 0 and 1"),
    (([0, 1], "symmetric", float("nan"), 2), "between 0 and 1"),
    (([0, 0], "symmetric", 0.1, 1), "second class"),
    (([0, 2], "symmetric", 0.1, 2), "number 1 is 2"),
    (([0, -1], "annotators", 0.1, 2), "number 1 is -1"),
    (([0.5, 1], "symmetric", 0.1, 2), "whole numbers"),
    (([[0, 1]], "symmetric", 0.1, 2), "whole numbers"),
])
def test_wrong_noise_is_refused(arguments, said):
    with pytest.raises(FerlabError, match=said):
        inject_noise(*arguments, seed=0)


def test_wrong_matrices_are_refused():
    with pytest.raises(FerlabError, match="confusion must be"):
        inject_noise([0, 1], "asymmetric", 0.5, 2, 0, confusion=np.eye(3))
    with pytest.raises(FerlabError, match="confusion must be"):
        inject_noise([0, 1], "asymmetric", 0.5, 2, 0, confusion=-np.eye(2))
    with pytest.raises(FerlabError, match="distribution must be"):
        inject_noise([0, 1], "annotators", 0.5, 2, 0, distribution=np.zeros((2, 2)))


def test_with_noise_keeps_the_truth_and_tells_the_rate():
    faces = some_faces(label_distribution=np.eye(8)[np.arange(40) % 8])
    assert np.isnan(faces.noise_rate)
    noisy = faces.with_noise("symmetric", 0.33, seed=5)
    assert noisy.noise == "symmetric 33 % (achieved 32.5 %, seed 5)" and noisy.noise_rate == pytest.approx(13 / 40)
    assert (noisy.truth == faces.labels).all() and faces.truth is None and noisy.label_distribution is None
    twice = noisy.with_noise("asymmetric", 0.1, seed=0)
    assert (twice.truth == faces.labels).all() and "; asymmetric" in twice.noise
    assert faces.with_noise("symmetric", 0).label_distribution is not None


def test_with_noise_follows_the_names_of_the_classes_and_the_mixture():
    two = ("fear", "surprise", "happiness")
    faces = FaceSet(np.zeros((3000, 2, 2), np.uint8), np.zeros(3000, int), two)
    counts = np.bincount(faces.with_noise("asymmetric", 1.0).labels, minlength=3)
    assert counts[1] > 5 * counts[2] > 0 == counts[0]
    mixture = np.tile([0.6, 0, 0.4], (3000, 1))
    blended = FaceSet(faces.images, faces.labels, two, extras={"mixture": mixture}).with_noise("annotators", 0.4)
    assert np.bincount(blended.labels)[2] > 5 * np.bincount(blended.labels)[1]


def test_noise_rate_counts_faces_whose_truth_is_known():
    faces = some_faces(4, truth=np.array([0, 1, 3, -1]))
    assert faces.noise_rate == pytest.approx(1 / 3)


# ----------------------------------------------------------------------------------------------------- face sets

def test_a_face_set_coerces_and_counts():
    faces = some_faces(truth=[i % 8 for i in range(40)], votes=np.ones((40, 8), int), names=list(map(str, range(40))))
    assert faces.labels.dtype == faces.truth.dtype == np.int64 and faces.votes.dtype == np.float32
    assert len(faces) == 40 and faces.class_counts.tolist() == [5] * 8
    assert len(some_faces(0)) == 0


def test_the_fingerprint_is_of_names_labels_and_pixels():
    def fingerprint(**changes):
        return dataclasses.replace(some_faces(names=np.arange(40).astype(str)), **changes).fingerprint

    assert fingerprint() == fingerprint() and some_faces(0).fingerprint
    other = some_faces().images.copy()
    other[39] += 1
    assert len({fingerprint(), fingerprint(names=np.arange(1, 41).astype(str)), fingerprint(images=other),
                fingerprint(labels=np.arange(40)[::-1] % 8)}) == 4


@pytest.mark.parametrize(("change", "said"), [
    ({"labels": [0, 1, 9]}, "number 2 is 9"),
    ({"labels": [0, 1]}, "2 labels do not fit images"),
    ({"labels": [0.0, 1.0, 1.0]}, "whole numbers"),
    ({"images": np.zeros((3, 4, 4))}, "uint8"),
    ({"images": np.zeros((3, 4, 4, 4), np.uint8)}, "uint8"),
    ({"classes": ("a", "a")}, "differ"),
    ({"classes": ()}, "class names"),
    ({"truth": [0, 1, -2]}, "number 2 is -2"),
    ({"truth": [0, 1]}, "do not fit truth"),
    ({"votes": np.ones((3, 3))}, "votes must be"),
    ({"votes": np.ones((2, 2))}, "do not fit votes"),
    ({"label_distribution": np.ones((3, 2))}, "sum to 1"),
    ({"names": ["a"]}, "do not fit names"),
    ({"extras": {"units": np.ones((2, 5))}}, "do not fit units"),
])
def test_arrays_that_do_not_fit_are_refused(change, said):
    good = {"images": np.zeros((3, 4, 4), np.uint8), "labels": [0, 1, 1], "classes": ("a", "b"), "dataset": "toy"}
    FaceSet(**good)
    with pytest.raises(FerlabError, match=said):
        FaceSet(**{**good, **change})


@pytest.mark.parametrize("index", [[3, 1], np.array([3, 1]), torch.tensor([3, 1]), [-37, -39]])
def test_subset_keeps_the_order(index):
    faces = some_faces(names=np.arange(40).astype(str), extras={"id": np.arange(40)})
    part = faces.subset(index)
    assert part.names.tolist() == ["3", "1"]
    assert part.extras["id"].tolist() == part.labels.tolist() == part.images[:, 0, 0].tolist() == [3, 1]


def test_subset_of_a_mask_a_slice_and_nothing():
    faces = some_faces()
    assert len(faces.subset(faces.labels == 2)) == 5
    assert len(faces.subset(slice(0, 7))) == 7
    assert len(faces.subset([])) == 0
    assert len(faces.subset(np.zeros(40, bool))) == 0


def test_large_memory_maps_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("ferlab.data.IN_MEMORY", 100)
    np.save(tmp_path / "images.npy", some_faces().images)
    faces = FaceSet(np.load(tmp_path / "images.npy", mmap_mode="r"), some_faces().labels, EIGHT)
    part = faces.subset(np.arange(39, -1, -1)).subset(slice(0, 20))
    view = part.images
    assert isinstance(view, ImageView) and view.shape == (20, 4, 4) and len(view) == 20 and view.dtype == np.uint8
    assert view[0, 1, 1] == 39 and view[:3, 0, 0].tolist() == [39, 38, 37]
    assert view[np.array([1, 0])][:, 0, 0].tolist() == [38, 39]
    assert view[np.arange(20) > 17].shape == (2, 4, 4) and np.asarray(view).shape == (20, 4, 4)
    assert isinstance(part.subset([0]).images, np.ndarray)


def test_reorder_moves_every_column():
    faces = some_faces(7, EIGHT[:7], truth=np.array([0, 1, 2, 3, 4, 5, -1]), votes=np.eye(7),
                       label_distribution=np.eye(7), extras={"mixture": np.eye(7)})
    other = ("contempt", *EIGHT[:7][::-1])
    moved = faces.reorder(other)
    assert moved.classes == other
    assert [other[label] for label in moved.labels] == [faces.classes[label] for label in faces.labels]
    assert moved.truth[-1] == -1 and (moved.truth[:6] == moved.labels[:6]).all()
    for columns in (moved.votes, moved.label_distribution, moved.extras["mixture"]):
        assert (columns.argmax(1) == moved.labels).all() and columns.shape == (7, 8)
    back = moved.reorder(EIGHT[:7])
    assert (back.labels == faces.labels).all() and np.allclose(back.label_distribution, np.eye(7))
    with pytest.raises(FerlabError, match="fear"):
        faces.reorder(EIGHT[:6])


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FERLAB_CACHE", raising=False)
    assert cache_directory() == tmp_path / "ferlab"
    monkeypatch.setenv("FERLAB_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    assert cache_directory(tmp_path) == tmp_path


def test_half_a_wrong_label_is_a_wrong_label():
    assert (inject_noise(np.zeros(10, int), "symmetric", 0.25, 2, seed=0) == 1).sum() == 3


def test_annotators_err_on_pure_faces_too_as_their_class_is_usually_mistaken():
    labels, pure = np.repeat([0, 1], 4000), np.eye(3)[np.repeat([0, 1], 4000)]
    mixed = pure.copy()
    mixed[:2000] = 0.5, 0.5, 0
    noisy = inject_noise(labels, "annotators", 0.2, 3, seed=0, distribution=mixed,
                         confusion=[[0, 1, 1], [1, 0, 3], [1, 1, 0]])
    counts = np.bincount(noisy[4000:], minlength=3)  # of pure faces of class 1
    assert len(counts) == 3 and 0.02 < (counts[0] + counts[2]) / 4000 < 0.1
    assert counts[2] / counts[0] == pytest.approx(3, rel=0.3)


def test_how_much_of_each_class_is_in_a_face_is_counted_in_any_unit():
    labels = some_labels(500, 3)
    mixture = np.random.default_rng(0).random((500, 3))
    one, other = (inject_noise(labels, "annotators", 0.3, 3, seed=0, distribution=d) for d in (mixture, 7 * mixture))
    assert (one == other).all() and (one != labels).any()


def test_annotators_who_are_told_no_other_class_take_any():
    noisy = inject_noise(np.zeros(3000, int), "annotators", 1.0, 3, seed=0, confusion=np.eye(3))
    assert np.bincount(noisy)[1:] == pytest.approx([1500, 1500], rel=0.1)


def test_faces_are_drawn_at_random_in_their_former_order():
    faces = some_faces(names=np.arange(40).astype(str))
    drawn = faces.draw(12, seed=1).names.astype(int)
    assert len(drawn) == 12 and (np.diff(drawn) > 0).all() and drawn.max() > 12
    assert (drawn != faces.draw(12, seed=2).names.astype(int)).any() and faces.draw(40) is faces


def test_what_a_soft_label_gave_a_class_that_is_left_out_goes_to_the_others():
    soft = np.tile(np.float32([0.6, 0.2, 0.2]), (4, 1))
    faces = some_faces(4, ("a", "b", "c"), label_distribution=soft)
    faces.labels[:] = 0
    assert np.allclose(faces.reorder(("b", "a")).label_distribution, [0.25, 0.75])


def test_the_fingerprint_is_of_the_soft_labels_too():
    soft = np.eye(8)[np.arange(40) % 8]
    other = soft.copy()
    other[0] = 1 / 8
    assert len({some_faces(label_distribution=each).fingerprint for each in (None, soft, other)}) == 3


def test_one_pixel_of_colour_is_a_colour():
    faces = some_faces()
    faces.images = np.repeat(faces.images[..., None], 3, axis=3)
    assert faces.grey
    faces.images[-1, 0, 0, 2] += 1
    assert not faces.grey
