"""Parameter and MAC counts, against published numbers and recorded vectors (integers throughout)."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_nas import Parts, SizeTable, SubNetwork, extract
from tests import zoo


def on_meta(model_class, **config):
    with torch.device("meta"):
        return model_class(BertConfig(**config))


def uniform(structure, layers: int, heads: int, neurons: int) -> SubNetwork:
    return SubNetwork.of(
        structure,
        {
            s.name: None if s.layer >= layers else heads if s.kind == "attention" else neurons for s in structure
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    "size, parameters",
    [
        ((12, 12, 3072), 108_311_810),
        ((0, 1, 1), 23_257_346),
        ((6, 5, 1535), 43_344_764),
        ((12, 1, 1971), 62_027_366),
        ((9, 2, 1223), 43_758_977),
        ((1, 6, 1024), 26_016_642),
        ((10, 1, 2818), 68_584_086),
        ((1, 1, 1), 23_460_291),
    ],
)
def test_bert_base_cased(size: tuple[int, int, int], parameters: int) -> None:
    table = SizeTable(on_meta(BertForSequenceClassification, vocab_size=28_996))
    assert table.parameters(uniform(table.structure, *size)) == parameters


def test_a_stack_of_minilm_size() -> None:
    table = SizeTable(
        on_meta(BertForSequenceClassification, hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    )
    assert table.parameters(SubNetwork.full(table.structure), Parts.encoder()) == 10_646_784
    assert table.parameters(uniform(table.structure, 1, 1, 1), Parts.encoder()) == 52_321


def test_the_three_published_sparsity_denominators() -> None:
    table = SizeTable(on_meta(BertForSequenceClassification, num_labels=3))
    full = SubNetwork.full(table.structure)
    assert table.parameters(full, Parts(embeddings=False, norms=False, heads=False)) == 85_017_600
    assert table.parameters(full, Parts.encoder()) == 85_054_464
    assert table.parameters(full, Parts(embeddings=False)) == 85_647_363


@pytest.mark.parametrize(
    "model_class, config, length, macs, weights",
    [
        (BertForSequenceClassification, {}, 128, 11_174_217_216, 85_526_016),
        (
            BertForSequenceClassification,
            {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048,
             "num_labels": 3},
            128, 3_355_706_880, 25_429_504,
        ),
        (
            BertForQuestionAnswering,
            {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048},
            384, 10_872_029_184, 25_166_848,
        ),
    ],
)  # fmt: skip
def test_macs_and_weights_as_nncf_counts_them(model_class, config, length: int, macs: int, weights: int) -> None:
    table = SizeTable(on_meta(model_class, **config))
    full = SubNetwork.full(table.structure)
    assert table.macs(full, length) == macs
    assert table.parameters(full, Parts(embeddings=False, norms=False, biases=False)) == weights


def test_macs_of_one_head_and_one_neuron() -> None:
    table = SizeTable(on_meta(BertForSequenceClassification))
    full = SubNetwork.full(table.structure)
    for name, less, macs in (("encoder.3.attention", 11, 27_262_976), ("encoder.3.feed_forward", 3071, 196_608)):
        assert table.macs(full, 128) - table.macs(SubNetwork.of(table.structure, {name: less}), 128) == macs


@pytest.mark.parametrize("name", zoo.MODELS)
def test_sizes_grow_with_every_unit(name: str) -> None:
    table = SizeTable(zoo.build(name))
    full = SubNetwork.full(table.structure)
    for sub_layer in table.structure:
        sizes = [SubNetwork.of(table.structure, {sub_layer.name: k}) for k in (None, 0, 1, sub_layer.units)]
        parameters = [table.parameters(size) for size in sizes]
        macs = [table.macs(size, 10 if name == "vit" else 16) for size in sizes]
        assert macs == sorted(macs) and parameters[-1] == table.parameters(full)
        if not sub_layer.layout.hands_on_bias:  # T5 trades one shared table for one a layer
            assert parameters == sorted(parameters)


def test_cross_attention_reads_both_lengths() -> None:
    table = SizeTable(zoo.build("bart"))
    full = SubNetwork.full(table.structure)
    without = SubNetwork.of(table.structure, {"decoder.0.cross_attention": None})
    source, target, width = 11, 5, 32
    projections = 2 * width * width * target + 2 * width * width * source
    assert table.macs(full, source, target) - table.macs(without, source, target) == (
        projections + 2 * source * target * width
    )


def counted(model, inputs: dict) -> int:
    """Multiply-accumulate operations of the matrix products that torch runs."""
    with FlopCounterMode(display=False) as counter:
        model.requires_grad_(False)(**inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", zoo.MODELS)
def test_macs_are_those_that_torch_runs(name: str) -> None:
    model = zoo.build(name, "eager")
    table = SizeTable(model)
    inputs = {key: value[:1] for key, value in zoo.inputs_for(model).items()}
    length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 10
    lengths = (length, inputs["decoder_input_ids"].shape[1]) if "decoder_input_ids" in inputs else (length,)
    full, cases = SubNetwork.full(table.structure), zoo.corner_cases(model)
    # Stock decoders classify every token, of which only the last one counts.
    superfluous = (length - 1) * model.score.weight.numel() if name == "llama-classification" else 0
    assert table.macs(full, *lengths) + superfluous == counted(model, inputs)
    for case in ("uniform half", "other units in every layer", "middle layer gone", "everything at once"):
        assert table.macs(cases[case], *lengths) + superfluous == counted(extract(model, cases[case]), inputs), case


def test_macs_of_vit_base_as_published() -> None:
    """17.56 billion for an image of 224 x 224 pixels, of which the projection of patches has 0.116."""
    with torch.device("meta"):
        table = SizeTable(ViTForImageClassification(ViTConfig(num_labels=1000)))
    full = SubNetwork.full(table.structure)
    assert table.parameters(full) == 86_567_656
    assert table.macs(full, 197) == 17_563_828_224
