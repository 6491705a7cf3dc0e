"""Extracted models load everywhere, or stop with an error; never with weights drawn at random."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
)

import hf_nas
from hf_nas import SubNetwork, describe, extract, install_loader, save_extracted
from hf_nas.extraction import is_stock
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo


ROOT = Path(hf_nas.__file__).parent.parent
FRESH_PROCESS = """
import json, sys
{first}
import torch, transformers
inputs, auto, folder, options = json.loads(sys.stdin.read())
inputs = {{name: torch.tensor(value) for name, value in inputs.items()}}
model = getattr(transformers, auto).from_pretrained(folder, **options).eval()
with torch.no_grad():
    print("LOGITS" + json.dumps(model(**inputs).logits.tolist()))
"""


def in_fresh_process(first: str, inputs: dict, auto: str, folder: Path, **options) -> subprocess.CompletedProcess:
    """Load and run a folder in a process of its own; `first` is its first line."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = str(ROOT) if "hf_nas" in first else ""
    message = json.dumps([{k: v.tolist() for k, v in inputs.items()}, auto, str(folder), options])
    # Isolated from the current folder and, without hf-nas, from an installed one.
    code = FRESH_PROCESS.format(first=first)
    return subprocess.run(
        [sys.executable, "-c", code], input=message, env=environment, cwd=folder, capture_output=True, text=True
    )


def logits_of(process: subprocess.CompletedProcess) -> torch.Tensor:
    lines = [line for line in process.stdout.splitlines() if line.startswith("LOGITS")]
    assert lines, process.stderr[-2000:]
    return torch.tensor(json.loads(lines[0].removeprefix("LOGITS")))


HIDE = "import sys; sys.modules['hf_nas'] = None"  # any import of it fails, as where it is not installed
AUTO = {
    "bert": "AutoModelForSequenceClassification",
    "mpnet": "AutoModelForSequenceClassification",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}


@pytest.mark.parametrize("name", AUTO)
def test_fresh_processes(name: str, tmp_path) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    sub_network = zoo.corner_cases(model)["everything at once"]
    small = extract(model, sub_network)
    with torch.no_grad():
        wanted = small(**inputs).logits
    save_extracted(small, sub_network, tmp_path)
    tolerance = 1e-5 * max(1.0, float(wanted.abs().max()))
    with_hf_nas = in_fresh_process("import hf_nas", inputs, AUTO[name], tmp_path)
    assert (logits_of(with_hf_nas) - wanted).abs().max() <= tolerance
    with_trust = in_fresh_process(HIDE, inputs, AUTO[name], tmp_path, trust_remote_code=True)
    assert (logits_of(with_trust) - wanted).abs().max() <= tolerance
    both = in_fresh_process("import hf_nas", inputs, AUTO[name], tmp_path, trust_remote_code=True)
    assert (logits_of(both) - wanted).abs().max() <= tolerance
    with_neither = in_fresh_process(HIDE, inputs, type(model).__name__, tmp_path)
    assert with_neither.returncode != 0 and "LOGITS" not in with_neither.stdout
    assert "AmbiguousGlobalPerLayerAttributeError" in with_neither.stderr or "size mismatch" in with_neither.stderr


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_only_skipped_sub_layers_stop_a_stock_class_too(name: str, tmp_path) -> None:
    """The silent hole of transformers 5: with nothing but `skip` entries it draws the missing weights at random."""
    model = zoo.build(name)
    structure = describe(model)
    for kind in {sub_layer.kind for sub_layer in structure}:
        gone = [s.name for s in structure if s.kind == kind and s.layer == structure.depths[s.stack] // 2]
        for left in (None, NORM_ONLY):
            _check_that_stock_loading_stops(model, dict.fromkeys(gone, left), tmp_path / f"{kind}-{left}")


def _check_that_stock_loading_stops(model, kept, folder) -> None:
    extract(model, SubNetwork.of(describe(model), kept)).save_pretrained(folder)
    with stock_transformers(), pytest.raises(Exception) as caught:
        type(model).from_pretrained(folder)
    assert "per-layer attribute" in str(caught.value) or "ignore_mismatched_sizes" in str(caught.value)


class stock_transformers:
    """Within the block transformers is as it is without hf-nas."""

    def __enter__(self):
        from transformers import PreTrainedModel

        self.ours = PreTrainedModel.__init__, PreTrainedModel.post_init
        PreTrainedModel.__init__ = self.ours[0].hf_nas_original
        PreTrainedModel.post_init = self.ours[1].hf_nas_original

    def __exit__(self, *exception):
        from transformers import PreTrainedModel

        PreTrainedModel.__init__, PreTrainedModel.post_init = self.ours


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_what_the_stock_configuration_can_state_is_a_stock_checkpoint(name: str, tmp_path) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    neurons = {s.name: 7 for s in structure if s.kind == "feed_forward"}
    depth = {s.name: None for s in structure if s.layer == 1}
    sub_network = SubNetwork.of(structure, {**neurons, **depth})
    small = extract(model, sub_network)
    assert is_stock(small)
    save_extracted(small, sub_network, tmp_path)
    assert not (tmp_path / "modeling_hf_nas.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    with stock_transformers():
        loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(zoo.logits(loaded, inputs), zoo.logits(small, inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "qwen2", "qwen3", "mistral", "phi3", "vit"])
def test_fewer_heads_are_stock_where_the_head_size_is_a_field_of_its_own(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    heads = {s.name: 3 for s in structure if s.layout.is_attention}
    assert is_stock(extract(model, SubNetwork.of(structure, heads)))


@pytest.fixture
def uneven(tmp_path):
    model = zoo.build("bert")
    sub_network = zoo.corner_cases(model)["everything at once"]
    small = extract(model, sub_network)
    save_extracted(small, sub_network, tmp_path)
    return small, zoo.inputs_for(model), tmp_path


def test_every_loading_route(uneven) -> None:
    small, inputs, folder = uneven
    wanted = zoo.logits(small, inputs)
    for loaded in (
        AutoModelForSequenceClassification.from_pretrained(folder),
        BertForSequenceClassification.from_pretrained(folder),
        BertForSequenceClassification.from_pretrained(folder, dtype="auto"),
        BertForSequenceClassification.from_pretrained(folder, low_cpu_mem_usage=True),
    ):
        assert type(loaded) is BertForSequenceClassification
        assert torch.equal(zoo.logits(loaded.eval(), inputs), wanted)
    built = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    built.load_state_dict(small.state_dict())
    assert torch.equal(zoo.logits(built.eval(), inputs), wanted)
    assert built.config.is_heterogeneous
    base = AutoModel.from_pretrained(folder).eval()
    assert type(base) is BertModel
    with torch.no_grad():
        assert torch.equal(base(**inputs).last_hidden_state, small.bert(**inputs).last_hidden_state)


def test_a_users_sub_class_loads(uneven) -> None:
    small, inputs, folder = uneven

    class Mine(BertForSequenceClassification):
        pass

    assert torch.equal(zoo.logits(Mine.from_pretrained(folder).eval(), inputs), zoo.logits(small, inputs))


def test_saving_again_sharding_and_low_precision(uneven, tmp_path) -> None:
    small, inputs, folder = uneven
    loaded = BertForSequenceClassification.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again", max_shard_size="8KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    again = BertForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(zoo.logits(again, inputs), zoo.logits(small, inputs))
    # Without the loader file, nothing may refer to it.
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    half = BertForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("heads, table", [([[0, 2], [1, 3], [0, 2]], 4), ([[0, 2], [0, 2], [0, 2]], 2)])
def test_heads_of_a_bias_for_all_layers(heads: list, table: int, tmp_path) -> None:
    """Of MPNet's one table, layers that differ select their heads; for layers that agree it is cut."""
    model = zoo.build("mpnet")
    inputs = zoo.inputs_for(model)
    kept = {f"encoder.{layer}.attention": ids for layer, ids in enumerate(heads)}
    small = extract(model, SubNetwork.of(describe(model), kept))
    assert small.mpnet.encoder.relative_attention_bias.weight.shape == (32, table)
    small.save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.bfloat16}):
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True, **options)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        for layer, ids in enumerate(heads):
            found = getattr(loaded.mpnet.encoder.layer[layer].attention.attn, "position_bias_heads", None)
            assert found is None if table == 2 else (found.dtype == torch.int64 and found.tolist() == ids)
    assert torch.equal(zoo.logits(type(model).from_pretrained(tmp_path).eval(), inputs), zoo.logits(small, inputs))
    torch.nn.init.zeros_(model.mpnet.encoder.relative_attention_bias.weight)
    unbiased = extract(model, SubNetwork.of(describe(model), kept))
    assert (zoo.logits(unbiased, inputs) - zoo.logits(small, inputs)).abs().max() > 1e-3
    with stock_transformers(), pytest.raises(Exception, match="per-layer attribute|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path)


def test_nothing_is_missing_or_unexpected(uneven) -> None:
    _, _, folder = uneven
    _, info = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_an_extracted_model_trains(uneven) -> None:
    small, inputs, _ = uneven
    small.train()
    before = [p.clone() for p in small.parameters()]
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    changed = [not torch.equal(p, q) for p, q in zip(before, small.parameters())]
    assert sum(changed) > 0.7 * len(changed)


def test_extraction_leaves_the_model_and_its_configuration_alone() -> None:
    model = zoo.build("llama")
    config = model.config.to_dict()
    extract(model, zoo.corner_cases(model)["everything at once"])
    assert model.config.to_dict() == config


def test_a_sub_network_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="take the model it was made from"):
        extract(zoo.build("bert"), SubNetwork.full(describe(zoo.build("roberta"))))


def test_layers_whose_scale_depends_on_their_position_cannot_be_removed() -> None:
    model = zoo.build("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx=True, which ties each layer's attention"):
        extract(model, zoo.corner_cases(model)["first layer gone"])


def test_installing_the_loader_twice_changes_nothing() -> None:
    from transformers import PreTrainedModel

    before = PreTrainedModel.__init__
    install_loader()
    assert PreTrainedModel.__init__ is before


def test_models_without_uneven_layers_pass_through(tmp_path) -> None:
    model = zoo.build("qwen3")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    inputs = zoo.inputs_for(model)
    assert torch.equal(zoo.logits(loaded, inputs), zoo.logits(model, inputs))
    assert "per_layer_config" not in json.loads((tmp_path / "config.json").read_text())
