"""Search spaces from movement scores: thresholds, targets, widths, and what NNCF 2.x made of the same scores."""

import json
import math
import re

import pytest
import torch

from hf_nas import SubNetwork, SuperNetwork, describe
from hf_nas.importance import reorder
from hf_nas.importance.movement import MovementScores, kept_units, unit_scores
from hf_nas.profiling import Parts, SizeTable
from hf_nas.space import CustomSpace
from hf_nas.space.generated import find_threshold, generate_space, network_at
from hf_nas.space.target_sizes import check_sizes, published_targets, targets
from hf_nas.subnetwork import NORM_ONLY, kept_ids
from tests import zoo
from tests.importance.movement.recordings import FOLDER, needs_recordings, read, recorded_bert
from tests.importance.movement.test_scores import random_scores


NAMES = [name for name in zoo.MODELS if name != "gpt2"]


def bert(**changes) -> tuple:
    """A BERT fine-grained enough for small tolerances, and random scores for it."""
    sizes = {"hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 200}
    model = zoo.build("bert", **{**sizes, **changes})
    return model, random_scores(model)


def recorded() -> tuple:
    model = recorded_bert()
    return model, MovementScores.load(FOLDER / "space/importance.bin", model)


def as_recorded(network, structure) -> tuple[dict[str, int], list[int]]:
    """Widths and skipped blocks by number, as NNCF has them: attentions first, a skipped one at full width."""
    order = sorted(structure, key=lambda sub_layer: not sub_layer.layout.is_attention)
    widths = {
        str(number): (network.widths[sub_layer.name] or sub_layer.units) * sub_layer.features
        for number, sub_layer in enumerate(order)
    }
    return widths, [number for number, sub_layer in enumerate(order) if sub_layer.name in network.skipped]


@needs_recordings
def test_recorded_grid_of_thresholds() -> None:
    model, scores = recorded()
    structure = describe(model)
    record = read("space/space.json")
    assert len(record["grid"]) == 22
    before = None
    for row in record["grid"]:
        network = network_at(scores, model, row["threshold"], 32)
        assert as_recorded(network, structure) == (row["width"], row["depth"])
        assert network.macs == round(row["mmacs"] * 1e6)
        masks = kept_units(scores.masks(row["threshold"]), structure)
        for name, width in network.widths.items():
            if width:
                assert list(kept_ids(network.sub_network[name])) == masks[name].nonzero().flatten().tolist()
        if before is not None:
            assert network.macs <= before.macs
            assert all(width <= before.widths[name] for name, width in network.widths.items())
        before = network
    assert SizeTable(model).macs(SubNetwork.full(structure), 32) == round(record["max_mmacs"] * 1e6)


@needs_recordings
def test_recorded_searches_and_spaces() -> None:
    model, scores = recorded()
    structure = describe(model)
    names = [s.name for s in sorted(structure, key=lambda sub_layer: not sub_layer.layout.is_attention)]
    for key in ("cmax25_cmin7_N5", "cmax25_cmin5_N5"):
        record = read("space/space.json")["spaces"][key]
        smallest = int(key.split("cmin")[1].split("_")[0])
        assert published_targets(21, smallest, 5) == record["targets"]
        made = generate_space(
            scores, model, 32, sizes=[target * 10**6 for target in record["targets"]], tolerance=10**6, bounds=(-1, 1)
        )
        for network, search in zip(made.networks, record["searches"], strict=True):
            last = search["steps"][-1]
            assert network.threshold == last["threshold"] and network.target == search["target"] * 10**6
            assert as_recorded(network, structure) == (last["width"], last["depth"])
            assert network.macs == round(last["mmacs"] * 1e6)
        outcome = record["outcome"]
        choices = made.space.to_dict()["sub_layers"]
        for name, widths in zip(names, outcome["widths"], strict=True):
            assert [w * structure[name].features for w in reversed(choices[name]) if w] == widths
        skippable = [name for name in names if 0 in choices[name]]
        assert len(skippable) == len(outcome["skipped_blocks"])
        for _, end in outcome["skipped_blocks"]:
            layer = end.split("BertLayer[")[1].split("]")[0]
            assert f"encoder.{layer}.{'attention' if 'SelfOutput' in end else 'feed_forward'}" in skippable
    # NNCF searched for ever where there is no such sub-network.
    with pytest.raises(
        ValueError,
        match="No threshold leaves 30000000 MACs .* allow: 21270912 .1.000000000 of",
    ):
        find_threshold(scores, model, 30e6, 32, tolerance=1e6, bounds=(-1, 1))


def test_sizes_that_no_scores_can_give_are_refused_without_scores() -> None:
    model = zoo.build("bert")
    check_sizes(model, 16, 1.0, 0.4, 5)
    table = SizeTable(model)
    outside = table.macs(SubNetwork.of(table.structure, dict.fromkeys(table.structure.names)), 16)
    check_sizes(model, 16, 1.0, outside + 1, 5)
    with pytest.raises(ValueError, match=f"'smallest' size {outside} stands for {outside} MACs, but without"):
        check_sizes(model, 16, 1.0, outside, 5)
    with pytest.raises(ValueError, match="There are no 5 sizes of sub-networks"):
        check_sizes(model, 16, 1.0, 4400e6, 5)
    with pytest.raises(ValueError, match="The 'largest' is 0"):
        check_sizes(model, 16, 0, 0.4, 5)


def test_targets() -> None:
    assert published_targets(11174, 4400, 5) == targets(11174, 4400, 5) == [4400, 6093, 7786, 9479, 11174]
    assert published_targets(21, 5, 5) == [5, 9, 13, 21]
    assert targets(21, 5, 5) == [5, 9, 13, 17, 21]
    assert targets(10, 5, 2) == [5, 10]
    for rule in (published_targets, targets):
        for arguments, message in (
            ((4400, 11174, 5), "no 5 sizes of sub-networks from 11174 to 4400"),
            ((5, 5, 2), "no 2 sizes"),
            ((7, 5, 5), "no 5 sizes of sub-networks from 5 to 7"),
            ((21, 0, 5), "no 5 sizes of sub-networks from 0 to 21"),
            ((21, 5, 1), "1 sizes of sub-networks are asked for"),
            ((21, 5, 2.5), "2.5 sizes"),
        ):
            with pytest.raises(ValueError, match=message):
                rule(*arguments)


@pytest.mark.parametrize(("units", "least"), [(3072, 62), (2048, 41), (100, 2), (49, 1)])
def test_next_to_nothing_is_skipped(units: int, least: int) -> None:
    model = zoo.build("bert", intermediate_size=units, num_hidden_layers=1)
    scores = random_scores(model)
    path = "bert.encoder.layer.0"
    scores.weights[f"{path}.output.dense"].fill_(-1.0)
    scores.biases[f"{path}.intermediate.dense"].fill_(-1.0)
    rows = scores.weights[f"{path}.intermediate.dense"]
    for kept in (least, least - 1):
        rows.fill_(-1.0)
        rows[1 : kept + 1] = 1.0
        network = network_at(scores, model, 0.5, 16)
        if kept == least:
            assert network.widths["encoder.0.feed_forward"] == kept
            assert network.sub_network["encoder.0.feed_forward"] == tuple(range(1, kept + 1))
        else:
            assert network.widths["encoder.0.feed_forward"] == 0
            assert network.sub_network["encoder.0.feed_forward"] == NORM_ONLY
        # All the scores of the attention are below the threshold.
        assert network.widths["encoder.0.attention"] == 0 and network.sub_network["encoder.0.attention"] is None
    everything = network_at(scores, model, 0.5, 16, discard_share=0.999)
    assert everything.skipped == ("encoder.0.attention", "encoder.0.feed_forward")


def test_searches_hit_or_name_the_nearest() -> None:
    model, scores = bert()
    table = SizeTable(model)
    full = table.macs(SubNetwork.full(table.structure), 16)
    for share in (0.1, 0.3, 0.5, 0.77, 1.0):
        network = find_threshold(scores, model, share, 16)
        assert abs(network.macs - share * full) <= 0.01 * full + 1
        assert network.macs == table.macs(network.sub_network, 16)
        assert network.parameters == table.parameters(network.sub_network, Parts.encoder())
    assert find_threshold(scores, model, 1.0, 16).sub_network == SubNetwork.full(table.structure)
    assert find_threshold(scores, model, full // 2, 16, tolerance=full // 100).target == full // 2
    whole = f"{full} .1.000000000 of the full model."
    with pytest.raises(ValueError, match=f"No threshold leaves {2 * full} MACs .* allow: {whole}; choose"):
        find_threshold(scores, model, 2 * full, 16)
    with pytest.raises(ValueError, match=r"No threshold leaves .* \(within 0\)") as error:
        find_threshold(scores, model, full // 2 + 1, 16, tolerance=0)
    nearest = re.findall(r"(\d+) \(([\d.]+) of the full model\)", str(error.value))
    assert int(nearest[0][0]) < full // 2 + 1 < int(nearest[1][0])
    for size, share in nearest:
        for wanted in (int(size), float(share)):
            assert find_threshold(scores, model, wanted, 16, tolerance=0).macs == int(size)
    # Thresholds far from those of EFTNAS.
    large = MovementScores(
        {path: 1000 + 1e4 * tensor for path, tensor in scores.weights.items()},
        {path: 1000 + 1e4 * tensor for path, tensor in scores.biases.items()},
        scores.shapes,
    )
    ours, theirs = (find_threshold(each, model, 0.5, 16) for each in (large, scores))
    assert abs(ours.macs - theirs.macs) <= 0.02 * full and ours.threshold > 1
    with pytest.raises(ValueError, match="No threshold leaves"):
        find_threshold(large, model, 0.5, 16, bounds=(-1, 1))


def test_sizes_between_the_ends_are_as_near_as_there_are() -> None:
    """All heads of an attention go at one threshold where a bias saves them until the last weight is gone."""
    model, scores = bert()
    equal = {
        path: torch.full_like(each, 0.01) if "attention" in path else each for path, each in scores.weights.items()
    }
    tied = MovementScores(equal, {}, scores.shapes)
    table = SizeTable(model)
    full = table.macs(SubNetwork.full(table.structure), 16)
    made = generate_space(tied, model, 16, smallest=0.1, count=9, tolerance=0.02)
    assert [network.target for network in made.networks] == targets(full, round(0.1 * full), 9)
    missed = [network for network in made.networks if abs(network.macs - network.target) > 0.02 * full]
    assert missed and made.networks[0] not in missed and made.networks[-1] not in missed
    sizes = {find_threshold(tied, model, network.macs, 16, tolerance=0).macs for network in made.networks}
    for network in missed:
        assert min(sizes, key=lambda size: abs(size - network.target)) == network.macs
    with pytest.raises(ValueError, match="No threshold leaves"):
        generate_space(tied, model, 16, sizes=[0.1, missed[0].target / full, 1.0], tolerance=0.02)


def test_a_space_holds_the_networks_it_was_made_from() -> None:
    model, scores = bert()
    structure = describe(model)
    table = SizeTable(model)
    made = generate_space(scores, model, 16, smallest=0.1, count=6)
    full = table.macs(SubNetwork.full(structure), 16)
    assert [network.target for network in made.networks] == targets(full, round(0.1 * full), 6)
    assert made.space.name == "generated"
    specification = made.space.to_dict()
    assert CustomSpace(json.loads(json.dumps(specification)), structure).to_dict() == specification
    for name, choices in specification["sub_layers"].items():
        assert choices == sorted({network.widths[name] for network in made.networks})
    skippable = {name for name, choices in specification["sub_layers"].items() if 0 in choices}
    assert skippable == {name for network in made.networks for name in network.skipped} and skippable
    assert specification.get("skip_keeps_norm", []) == (
        ["encoder.*.feed_forward"] if any("feed" in name for name in skippable) else []
    )
    order = reorder(model, structure, unit_scores(scores, structure))
    assert order
    for network in made.networks:
        prefix = {name: width or network.sub_network[name] for name, width in network.widths.items()}
        sub_network = SubNetwork.of(structure, prefix)
        assert made.space.decode(made.space.encode(sub_network)) == sub_network
        assert table.macs(sub_network, 16) == network.macs
    assert made.space.largest == SubNetwork.full(structure)


def test_a_skipped_feed_forward_keeps_its_norm() -> None:
    model, scores = bert(num_hidden_layers=2)
    path = "bert.encoder.layer.1"
    for tensor in (
        scores.weights[f"{path}.output.dense"],
        scores.weights[f"{path}.intermediate.dense"],
        scores.biases[f"{path}.intermediate.dense"],
    ):
        tensor -= 0.05
    made = generate_space(scores, model, 16, count=4)
    specification = made.space.to_dict()
    assert 0 in specification["sub_layers"]["encoder.1.feed_forward"]
    assert specification["skip_keeps_norm"] == ["encoder.*.feed_forward"]
    assert made.space.smallest["encoder.1.feed_forward"] == NORM_ONLY
    assert "encoder.1.feed_forward" in made.networks[0].skipped


def test_what_is_always_skipped_is_named() -> None:
    model, scores = bert()
    path = "bert.encoder.layer.2"
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        scores.weights[f"{path}.attention.{name}"].fill_(-9.0)
    with pytest.raises(ValueError, match="At all 2 sizes next to nothing is left of 'encoder.2.attention'; give"):
        generate_space(scores, model, 16, smallest=0.3, largest=0.6, count=2)


def test_multiples_and_parameters() -> None:
    model, scores = bert()
    made = generate_space(scores, model, 16, count=5, width_multiple=16, tolerance=0.02)
    choices = made.space.to_dict()["sub_layers"]
    for name, widths in choices.items():
        if "feed_forward" in name:
            assert all(width % 16 == 0 or width == 200 for width in widths), widths
    plain = network_at(scores, model, 0.0, 16)
    rounded = network_at(scores, model, 0.0, 16, width_multiple=16)
    for name, width in plain.widths.items():
        kept = set(kept_ids(plain.sub_network[name]))
        assert kept <= set(kept_ids(rounded.sub_network[name]))
        assert rounded.widths[name] == (min(200, math.ceil(width / 16) * 16) if "feed" in name else width)
    assert rounded.macs > plain.macs
    by_parameters = generate_space(scores, model, 16, count=3, measure="parameters")
    table = SizeTable(model)
    full = table.parameters(SubNetwork.full(table.structure), Parts.encoder())
    for network, share in zip(by_parameters.networks, (0.4, 0.7, 1.0), strict=True):
        assert abs(network.parameters - share * full) <= 0.01 * full + 2
    # More than the full model is cut down to it.
    assert generate_space(scores, model, 16, largest=10**12, count=2).networks[-1].macs == made.networks[-1].macs


@pytest.mark.parametrize("name", NAMES)
def test_every_family(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    length = 10 if name == "vit" else 16
    scores = random_scores(model)
    made = generate_space(scores, model, length, count=4, tolerance=0.1, decoder_length=8)
    assert len(made.networks) == 4
    assert [n.macs for n in made.networks] == sorted(n.macs for n in made.networks)
    reorder(model, structure, unit_scores(scores, structure))
    inputs = zoo.inputs_for(model)
    with SuperNetwork(model) as super_network:
        for sub_network in (made.space.smallest, made.space.largest):
            super_network.activate(sub_network)
            assert torch.isfinite(zoo.logits(model, inputs)).all()
    nothing = network_at(scores, model, math.inf, length)
    assert set(nothing.skipped) == set(structure.names)
    for sub_layer in structure:
        keeps_norm = sub_layer.layout.norm_only and not sub_layer.layout.is_attention
        assert nothing.sub_network[sub_layer.name] == (NORM_ONLY if keeps_norm else None)
    assert network_at(scores, model, -math.inf, length).sub_network == SubNetwork.full(structure)


def test_arguments_are_checked() -> None:
    model, scores = bert()
    for arguments, message in (
        ({"sequence_length": 0}, "'sequence_length' is 0"),
        ({"decoder_length": -1}, "'decoder_length' is -1"),
        ({"width_multiple": 1.5}, "'width_multiple' is 1.5"),
        ({"discard_share": 0}, "below the share 0 of their units"),
        ({"discard_share": 1}, "below the share 1 of their units"),
        ({"measure": "latency"}, "'latency' is not known; choose from 'macs', 'parameters'"),
        ({"largest": 0}, "'largest' is 0; give a share of the full model up to 1"),
        ({"smallest": "half"}, "'smallest' is 'half'"),
        ({"smallest": 0.9, "largest": 0.5}, "no 5 sizes of sub-networks"),
        ({"sizes": []}, "No sizes of sub-networks are given"),
        ({"sizes": [-1]}, "'sizes' is -1"),
        ({"tolerance": -0.1}, "'tolerance' is -0.1"),
        ({"bounds": (1, -1)}, r"'bounds' of the threshold are \(1, -1\)"),
        ({"bounds": 0}, "'bounds' of the threshold are 0"),
        ({"count": 0}, "0 sizes of sub-networks are asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_space(scores, model, **{"sequence_length": 16, **arguments})
    for threshold in (float("nan"), "high", True):
        with pytest.raises(ValueError, match="threshold of movement scores"):
            network_at(scores, model, threshold, 16)
    with pytest.raises(ValueError, match="no movement scores of"):
        generate_space(scores, zoo.build("llama"), 16)
