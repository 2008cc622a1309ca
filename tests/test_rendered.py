"""The rendered faces: the same bytes always, no person in two splits, no shortcut, and a truth that holds."""

import errno

import numpy as np
import pytest

from ferlab import rendered
from ferlab.data import FaceSet
from ferlab.errors import FerlabError

COUNTS = {"train": 60, "valid": 12, "test": 18}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def splits(cache):
    return rendered.load(size=32, **COUNTS, cache=cache, workers=1)


def test_every_split_has_the_documented_arrays(splits):
    for (name, count), faces in zip(COUNTS.items(), splits, strict=True):
        assert faces.images.shape == (count, 32, 32, 3) and faces.images.dtype == np.uint8
        assert (faces.classes, faces.dataset, faces.split, faces.rule) == (rendered.CLASSES, "rendered", name, "truth")
        assert faces.labels.dtype == np.int64 and np.array_equal(faces.labels, faces.truth)
        assert faces.votes.shape == (count, 8) and faces.votes.dtype == np.float32 and np.all(faces.votes.sum(1) == 10)
        mixture = faces.extras["mixture"]
        assert mixture.dtype == np.float32 and np.array_equal(mixture.argmax(1), faces.truth)
        np.testing.assert_allclose(mixture.sum(1), 1, rtol=1e-6)
        assert faces.extras["units"].shape == (count, 52) and faces.extras["units"].dtype == np.float32
        assert faces.extras["parts"].shape == (count, 16, 16) and faces.extras["parts"].dtype == np.uint8
        assert faces.extras["identity"].dtype == np.int64
        assert list(faces.names[:2]) == [f"rendered-{name}-00000", f"rendered-{name}-00001"]


def test_no_person_is_in_two_splits(splits):
    people = [set(faces.extras["identity"]) for faces in splits]
    assert len(set.union(*people)) == sum(len(each) for each in people)
    assert len(people[0]) == COUNTS["train"] / rendered.FACES_PER_IDENTITY


def test_classes_are_imbalanced_and_none_is_missing():
    share = np.bincount(rendered._truth(6000, 0, 0), minlength=8) / 6000
    assert share.argmax() == 0 and share[:2].min() > 0.2 and 0.025 < share.min() < 0.05
    assert np.array_equal(np.sort(rendered._truth(500, 0, 0)), np.sort(rendered._truth(500, 0, 1)))
    assert not np.array_equal(rendered._truth(500, 0, 0), rendered._truth(500, 0, 1))


def test_the_number_of_workers_does_not_change_a_byte(splits, tmp_path):
    again = rendered.load(size=32, **COUNTS, cache=tmp_path, workers=2)
    for one, two in zip(splits, again, strict=True):
        assert np.array_equal(one.images, two.images) and np.array_equal(one.votes, two.votes)
        assert all(np.array_equal(one.extras[key], two.extras[key]) for key in one.extras)


def test_the_second_start_opens_the_cache(splits, cache, monkeypatch):
    monkeypatch.setattr(rendered, "_draw", None)
    monkeypatch.setenv("FERLAB_CACHE", str(cache))
    again = rendered.load(size=32, **COUNTS)
    assert isinstance(again.train.images, np.memmap) and np.array_equal(again.test.images, splits.test.images)


def test_an_interrupted_run_is_resumed(splits, tmp_path, monkeypatch):
    drawn, whole = [], rendered._render_chunk

    def interrupted(path, *task):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(path.name)
        whole(path, *task)

    monkeypatch.setattr(rendered, "_render_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rendered.load(size=32, **COUNTS, cache=tmp_path, workers=1)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]

    def resumed(path, *task):
        assert path.name not in drawn
        whole(path, *task)

    monkeypatch.setattr(rendered, "_render_chunk", resumed)
    again = rendered.load(size=32, **COUNTS, cache=tmp_path, workers=1)
    assert all(np.array_equal(one.images, two.images) for one, two in zip(splits, again, strict=True))
    assert len(list(tmp_path.iterdir())) == 1


def test_without_an_expression_the_class_leaves_no_trace():
    """Person, camera, light and noise know nothing of the class: at rest, all classes give the same bytes."""
    rest = np.zeros(52)
    for index in range(3):
        at_rest = [rendered._face(0, 0, index, label, index, 32, rest)[0] for label in range(8)]
        assert all(np.array_equal(image, at_rest[0]) for image in at_rest)
        posed = [rendered._face(0, 0, index, label, index, 32)[0] for label in range(8)]
        assert len({image.tobytes() for image in posed}) == 8


def test_the_same_face_with_another_expression(splits):
    own = rendered.render_again(splits.train, 5, size=32)
    np.testing.assert_allclose(own.astype(int), splits.train.images[5].astype(int), atol=1)
    smile = rendered.render_again(splits.train, 5, rendered.expression_units("happiness"), size=32)
    assert smile.shape == (32, 32, 3) and not np.array_equal(smile, own)
    last = splits.train.subset(np.array([50, 5]))
    assert np.array_equal(rendered.render_again(last, 1, size=32), own)


def test_streams_are_separate():
    """Another expression leaves camera and light; another person leaves the expression."""
    first, second = (rendered._face(0, 0, 7, label, 3, 32)[2] for label in (1, 3))
    assert not np.array_equal(first.units, second.units)
    other_person = rendered._face(0, 0, 7, 1, 4, 32)[2]
    assert np.array_equal(first.units, other_person.units) and np.array_equal(first.votes, other_person.votes)


@pytest.mark.parametrize(("label", "row"), [("happiness", slice(8, 16)), ("surprise", slice(9, 16))])
def test_parts_light_up_where_the_expression_moves(label, row):
    def parts_of(units):
        return rendered._draw(rendered._person(0, 3), units, rendered.Camera(), rendered.STUDIO, 64)[1].astype(int)

    parts = parts_of(rendered.expression_units(label))
    assert parts.max() > 100 and parts[row, 4:12].sum() > 0.5 * parts.sum()
    assert parts_of(np.zeros(52)).max() == 0


def test_a_smile_moves_the_mouth_and_raised_brows_do_not():
    rest, smile, brows = (rendered.render_face(units, identity=3, size=64).astype(int) for units in (
        None, {"mouthSmileLeft": 1, "mouthSmileRight": 1}, {"browInnerUp": 1}))
    assert np.abs(smile - rest)[36:].sum() > 5 * np.abs(smile - rest)[:24].sum()
    assert np.abs(brows - rest)[:32].sum() > 5 * np.abs(brows - rest)[40:].sum()


def test_turning_and_lighting_change_the_face_and_the_identity_is_stable():
    face = rendered.render_face(identity=11, size=48)
    assert np.array_equal(face, rendered.render_face(identity=11, size=48))
    for change in ({"yaw": 20}, {"pitch": 10}, {"roll": 10}, {"light": (-60, 10)}, {"seed": 1}):
        assert not np.array_equal(face, rendered.render_face(**({"identity": 11, "size": 48} | change)))
    assert rendered.render_face(identity=11, size=25).shape == (25, 25, 3)


def test_prototypes():
    assert len(rendered.UNITS) == 52 and not rendered.expression_units("neutral").any()
    for label, name in enumerate(rendered.CLASSES):
        units = rendered.expression_units(name)
        assert units.shape == (52,) and units.min() >= 0 and units.max() <= np.float32(1.7)
        assert np.array_equal(units, rendered.expression_units(label))
        assert rendered.expression_units(name, 0.5).sum() <= units.sum()


@pytest.mark.parametrize(("arguments", "said"), [
    ({"size": 23}, "24 to 512"), ({"size": 513}, "24 to 512"), ({"size": 64.5}, "24 to 512"),
    ({"train": -1}, "train=-1"), ({"seed": -3}, "seed=-3"), ({"test": 2.5}, "test=2.5"), ({"workers": 0}, "workers=0"),
    ({"train": 10**9}, "so many faces take 12,288 GB")])
def test_bad_arguments_are_told_in_one_sentence(arguments, said, tmp_path):
    with pytest.raises(FerlabError, match=said):
        rendered.load(cache=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_other_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FerlabError, match="cannot write .*FERLAB_CACHE"):
        rendered.load(size=24, train=1, valid=0, test=0, cache=tmp_path / "file")
    with pytest.raises(FerlabError, match="no class 'joy'"):
        rendered.expression_units("joy")
    with pytest.raises(FerlabError, match="no variant 2"):
        rendered.expression_units("fear", variant=2)
    with pytest.raises(FerlabError, match="no face unit 'smile'"):
        rendered.render_face({"smile": 1})
    with pytest.raises(FerlabError, match="identity=-1"):
        rendered.render_face(identity=-1)
    with pytest.raises(FerlabError, match="not rendered"):
        rendered.render_again(FaceSet(np.zeros((1, 24, 24, 3), np.uint8), np.zeros(1, int), ("a",)), 0)
    for units in (np.zeros(3), np.full(52, np.nan)):
        with pytest.raises(FerlabError, match="52 finite weights"):
            rendered.render_face(units)


def test_a_damaged_cache_is_told(tmp_path):
    one = {"size": 24, "train": 1, "valid": 0, "test": 0, "cache": tmp_path}
    assert rendered.load(**one).valid is None
    for name in ("train-images.npy", "train.npz"):
        part = next(tmp_path.glob(f"*/{name}"))
        whole = part.read_bytes()
        for left in (40, 0):
            part.write_bytes(whole[:left])
            with pytest.raises(FerlabError, match="delete it"):
                rendered.load(**one)
        part.write_bytes(whole)


def test_a_disk_that_is_full_at_the_end_leaves_the_chunks_and_nothing_else(tmp_path, monkeypatch):
    one = {"size": 24, "train": 2, "valid": 0, "test": 0, "cache": tmp_path}

    def full(folder, *_):
        (folder / "train-images.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(FerlabError, match="No space left on device.*FERLAB_CACHE"):
        patch.setattr(rendered, "_join", full)
        rendered.load(**one)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["train-000000.npz"]
    assert len(rendered.load(**one).train) == 2 and not list(tmp_path.glob("*.partial"))


def test_the_asset_is_small_and_its_licence_stands_beside_it():
    assert rendered.ASSET.stat().st_size < 1.5e6
    assert "CC0" in (rendered.ASSET.parent / "NOTICE.md").read_text()


@pytest.mark.parametrize("wrong", [
    {"yaw": np.nan}, {"roll": np.inf}, {"pitch": "much"}, {"yaw": [1, 2]}, {"light": (30, np.nan)}, {"light": 30},
    {"light": (10,)}])
def test_angles_that_are_none_are_told(wrong):
    with pytest.raises(FerlabError, match=f"{next(iter(wrong))} is .*give degrees"):
        rendered.render_face(size=32, **wrong)
    assert rendered.render_face(size=32, light=np.array([10.0, 20.0])).shape == (32, 32, 3)
