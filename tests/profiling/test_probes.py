"""What is measured, and the cut-down models it is measured on."""

import pytest
import torch

from hf_nas import SubNetwork, SuperNetwork, describe, extract
from hf_nas.profiling import LatencyPlan, SizeTable, shrink
from hf_nas.profiling.probes import own_bias_kinds, spread_widths
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo


CASES = (
    "other units in every layer",
    "everything at once",
    "nothing but norms",
    "first layer gone",
    "all layers gone",
)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_a_shrunk_model_computes_as_the_extracted_one(name: str) -> None:
    model = zoo.build(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inputs = zoo.inputs_for(model)
    networks = zoo.corner_cases(model)
    for case in CASES:
        sub_network = networks[case]
        small, extracted = shrink(model, sub_network), extract(model, sub_network)
        assert torch.equal(zoo.logits(small, inputs), zoo.logits(extracted, inputs)), case
        assert {k: v.shape for k, v in small.state_dict().items()} == {
            k: v.shape for k, v in extracted.state_dict().items()
        }, case
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert describe(model) == describe(zoo.build(name))


def test_a_shrunk_model_shares_what_was_not_cut() -> None:
    model = zoo.build("bert")
    small = shrink(model, SubNetwork.of(describe(model), {"encoder.0.feed_forward": 3}))
    words = "bert.embeddings.word_embeddings.weight"
    assert small.get_parameter(words) is model.get_parameter(words)
    assert small.bert.encoder.layer[0].output.dense.weight.shape == (32, 3)


def test_a_super_network_is_not_measured() -> None:
    model = zoo.build("bert")
    with SuperNetwork(model) as super_network, pytest.raises(ValueError, match="super-network is attached"):
        shrink(model, super_network.full)
    shrink(model, SubNetwork.full(describe(model)))
    with pytest.raises(ValueError, match="belongs to a llama model"):
        shrink(model, SubNetwork.full(describe(zoo.build("llama"))))


@pytest.mark.parametrize(
    "units, count, widths",
    [
        (0, 6, ()), (1, 6, (1,)), (2, 6, (1, 2)), (12, 2, (1, 12)), (12, 6, (1, 2, 4, 8, 12)),
        (3072, 6, (1, 120, 488, 1104, 1968, 3072)),
    ],
)  # fmt: skip
def test_widths_are_closer_where_they_are_few(units: int, count: int, widths: tuple) -> None:
    assert spread_widths(units, count) == widths


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_every_kind_is_probed_alone(name: str) -> None:
    structure = describe(zoo.build(name))
    plan = LatencyPlan.of(structure, widths=3, num_networks=5)
    assert set(plan.empty.kept) == {None}
    for probe in plan.probes:
        left = [(s, kept) for s, kept in zip(structure, probe.sub_network.kept) if kept is not None]
        assert len(left) == probe.live == len([s for s in structure if f"{s.stack}.{s.kind}" == probe.kind])
        assert {f"{s.stack}.{s.kind}" for s, _ in left} == {probe.kind}
        assert {kept for _, kept in left} == {probe.kept}
    for sub_layer in structure:
        widths = {p.kept for p in plan.probes if p.kind == f"{sub_layer.stack}.{sub_layer.kind}"}
        assert {0, 1, sub_layer.units} <= widths and (NORM_ONLY in widths) == bool(sub_layer.layout.norm_only)
    assert set(plan.own_bias_probes) == {
        f"{s.stack}.{s.kind}" for s in structure if s.layout.position_bias
    }  # fmt: skip
    for kind, probe in plan.own_bias_probes.items():
        assert kind in own_bias_kinds(structure, probe.own) and kind not in own_bias_kinds(structure, probe.shared)
    assert len(set(plan.sub_networks)) == len(plan.sub_networks)


def test_whole_networks_are_of_all_sizes() -> None:
    model = zoo.build("bert", num_hidden_layers=12, num_attention_heads=8, intermediate_size=512)
    plan = LatencyPlan.of(describe(model), num_networks=22)
    assert plan.networks[0] == SubNetwork.full(plan.structure)
    assert plan.networks[1].counts() == (1,) * 24
    table = SizeTable(model)
    full = table.macs(plan.networks[0], 32)
    shares = [table.macs(network, 32) / full for network in plan.networks]
    assert sum(share < 0.2 for share in shares) >= 4 and sum(share > 0.3 for share in shares) >= 4
    assert LatencyPlan.of(plan.structure, num_networks=22) == plan
    assert LatencyPlan.of(plan.structure, num_networks=22, seed=1).networks[2:] != plan.networks[2:]


def test_widths_of_a_space() -> None:
    structure = describe(zoo.build("bert"))
    plan = LatencyPlan.of(structure, widths={"encoder.feed_forward": (6, 24)})
    assert [p.kept for p in plan.probes if p.kind == "encoder.feed_forward"] == [0, 1, 6, 24, NORM_ONLY]


def test_a_model_that_was_cut_already() -> None:
    model = zoo.build("bert")
    cut = extract(
        model,
        SubNetwork.of(
            describe(model),
            {"encoder.0.attention": 1, "encoder.1.attention": None, "encoder.1.feed_forward": 0,
             "encoder.2.feed_forward": NORM_ONLY},
        ),
    )  # fmt: skip
    plan = LatencyPlan.of(describe(cut), widths=2)
    live = {(probe.kind, probe.kept): probe.live for probe in plan.probes}
    assert live["encoder.attention", 1] == 2 and live["encoder.attention", 4] == 1
    assert live["encoder.feed_forward", 0] == 2 and live["encoder.feed_forward", 24] == 1
    assert live["encoder.feed_forward", NORM_ONLY] == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"widths": 1}, "widths 1; give 2 or more"),
        ({"num_networks": 1}, "num_networks is 1"),
        ({"widths": {"decoder.attention": (1,)}}, "no kind of sub-layer 'decoder.attention'"),
        ({"widths": {"encoder.attention": (5,)}}, "'encoder.attention' is 5; give 0 to 4"),
    ],
)
def test_plans_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyPlan.of(describe(zoo.build("bert")), **options)
