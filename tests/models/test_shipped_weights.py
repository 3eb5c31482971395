"""Trained models that come with semair, of every task."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import semair.models
from semair.models.cards import WEIGHTS_FILE, load_card

MODELS = Path(semair.models.__file__).parent
FOLDERS = [path.parent for path in sorted(MODELS.glob("*/weights/**/card.json"))]
LOADERS = {
    "uad": "semair.models.uad.networks",
    "csi": "semair.models.csi.networks",
    "semantic": "semair.models.semantic.networks",
    "bits": "semair.models.semantic.autoencoder_train",
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(MODELS)))
def test_shipped_weights_are_whole_and_small(folder):
    assert load_card(folder).name == folder.name
    card, network = import_module(LOADERS[load_card(folder).task]).load(folder)
    assert (folder / WEIGHTS_FILE).stat().st_size < 20e6
    assert card.metrics
    # What to type must work in any checkout.
    assert not any(Path(word).is_absolute() for word in card.training.command.split())
    assert card.network.n_parameters == sum(p.numel() for p in network.parameters())


def test_all_shipped_weights_together_are_small():
    assert len(FOLDERS) > 4
    assert sum((folder / WEIGHTS_FILE).stat().st_size for folder in FOLDERS) < 60e6
