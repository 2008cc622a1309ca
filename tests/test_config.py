"""Settings: what is refused, what comes back from JSON, and which profile is used when."""

import dataclasses
import json

import pytest
import torch

from ferlab.config import BASELINES, PROFILES, Config, profile, profile_name
from ferlab.errors import FerlabError


@pytest.mark.parametrize("setting, value", [
    ("epochs", 0), ("batch_size", 0), ("interval", 0), ("attention_maps", 0), ("smooth_collections", 0),
    ("mask_ratio", 1.5), ("mask_share", -0.1), ("clean_threshold", 2), ("ramp_up", -1), ("anneal_from", 1.1),
    ("size", 40), ("size", 16), ("split", "classes"), ("evidence", "none"), ("average_precision", "best"),
    ("optimizer", "adam"), ("attention_maps", 3), ("clean_threshold", float("nan")), ("top_k", 0),
    ("learning_rate", 0), ("learning_rate", float("nan")), ("backbone", "vgg"), ("augmentation", -1.0),
    ("warm_up", -1), ("contrastive_temperature", 0), ("contrastive_count", 0), ("label_smoothing", 1.5),
    ("seed", -1), ("seed", 2**32), ("local_dimensions", -4),
    ("contrastive", "off"), ("aligned", 1), ("epochs", 2.5), ("epochs", "3"), ("epochs", True), ("top_k", 2.5),
    ("learning_rate", "fast"), ("weights", 3), ("own", 3), ("method", None),
    ("average_epochs", -1.0), ("sharpness", -1.0), ("mask_weight", float("nan")), ("relabel_weight", -1.0),
])
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(FerlabError, match=setting):
        Config(**{setting: value})
    with pytest.raises(FerlabError, match=setting):
        Config().replace(**{setting: value})


def test_settings_cannot_be_changed_in_place():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 5
    assert config.replace(epochs=5).epochs == 5 and config.epochs == Config().epochs


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(FerlabError, match="no setting epochz.*epochs"):
        Config().replace(epochz=3)


@pytest.mark.parametrize("config", [*PROFILES.values(), Config(top_k=5, weights="face.pth", backbone="resnet18")])
def test_settings_come_back_from_json(config):
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["learning_rate"] == config.learning_rate


def test_settings_of_another_version_are_refused_or_left_out():
    old = json.dumps(json.loads(Config(epochs=7).to_json()) | {"restart": 3, "evidence": "odds"})
    with pytest.raises(FerlabError, match="no setting restart"):
        Config.from_json(old)
    assert Config.from_json(old, lenient=True) == Config(epochs=7)


def test_profile_is_the_argument_then_the_variable_then_the_machine(monkeypatch):
    monkeypatch.setenv("FERLAB_PROFILE", "smoke")
    assert profile_name("quick") == "quick" and profile_name() == "smoke"
    assert profile(epochs=2) == PROFILES["smoke"].replace(epochs=2)
    rival = PROFILES["smoke"].replace(method="scn", label_smoothing=0, views=1, consistency_weight=0,
                                      **BASELINES["smoke"])
    assert profile(method="scn") == rival and profile().label_smoothing > 0
    assert profile(method="plain", epochs=7, label_smoothing=0.2) == rival.replace(
        method="plain", epochs=7, label_smoothing=0.2)
    for unset in (lambda: monkeypatch.setenv("FERLAB_PROFILE", ""), lambda: monkeypatch.delenv("FERLAB_PROFILE")):
        unset()
        for gpu, name in ((True, "full"), (False, "quick")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
            assert profile_name() == name
    monkeypatch.setenv("FERLAB_PROFILE", "huge")
    with pytest.raises(FerlabError, match="huge.*smoke, quick, full"):
        profile()


def test_every_profile_ends_with_the_split_of_a_whole_round():
    for name, config in PROFILES.items():
        assert config.epochs > config.warm_up and (config.epochs - config.warm_up) % config.interval == 0, name
