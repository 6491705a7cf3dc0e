"""The loader file beside the weights, where hf-nas is not installed: it builds, and refuses, by itself."""

import importlib.util
import inspect
import json
from pathlib import Path
from types import FunctionType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas import extract, save_extracted
from tests import zoo


WRAPPED = (
    (PreTrainedModel, "__init__"),
    (PreTrainedModel, "post_init"),
    (PreTrainedModel, "from_pretrained"),
    (PreTrainedModel, "_finalize_model_loading"),
    (PreTrainedConfig, "get_config_dict"),
)


@pytest.fixture(params=["bert", "mpnet", "llama", "t5"])
def alone(request, tmp_path, monkeypatch):
    """An extracted model, its folder, and the class in its loader file, with transformers as it is without hf-nas."""
    model = zoo.build(request.param)
    sub_network = zoo.corner_cases(model)["everything at once"]
    small = extract(model, sub_network)
    save_extracted(small, sub_network, tmp_path)
    for owner, name in WRAPPED:
        ours = inspect.getattr_static(owner, name)
        stock = getattr(ours, "__func__", ours).__wrapped__
        monkeypatch.setattr(owner, name, stock if isinstance(ours, FunctionType) else type(ours)(stock))
    specification = importlib.util.spec_from_file_location("loader_of_a_test", tmp_path / "modeling_hf_nas.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return small, tmp_path, getattr(module, type(model).__name__)


def test_it_loads(alone) -> None:
    small, folder, model_class = alone
    inputs = zoo.inputs_for(small)
    loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(zoo.logits(loaded, inputs), zoo.logits(small, inputs))
    assert isinstance(model_class.from_pretrained(folder), model_class)


def test_it_draws_no_missing_weight_at_random(alone) -> None:
    _, folder, model_class = alone
    tensors = load_file(folder / "model.safetensors")
    lost = next(key for key in tensors if ".0." in key and tensors[key].numel())
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 of its weights"):
        model_class.from_pretrained(folder)


def test_it_refuses_sizes_that_no_layer_has(alone) -> None:
    small, folder, model_class = alone
    fields = json.loads((folder / "config.json").read_text())
    entries = fields.get("per_layer_config") or fields["hf_nas_per_layer_config"]["encoder"]["layers"]
    entry = entries[min(entries)]
    field = next(name for name in ("intermediate_size", "d_ff") if name in entry)
    entry[field] = 10**9
    Path(folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"states {field}=1000000000 for"):
        model_class.from_pretrained(folder)
