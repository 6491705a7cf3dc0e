"""What the flags of a pruning of heads say of a model, and what is left of it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_nas.gates import CostBudget, Gates, HeadBudget, binary_gates, head_rows, kind_of_row
from hf_nas.importance.head_gradient import HeadOrder
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import Parts, SizeTable, mac_costs
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork, kept_ids
from tests import zoo
from tests.trainer_plugins.head_pruning.test_run import DSP, VOITA, prune
from trainer_plugins import HeadPruningArguments, PruningArguments
from trainer_plugins.head_pruning.budget import budget_of, heads_by_kind, heads_left, keep_by_order


BY_COST = {**DSP, "num_of_heads": None, "gate_neurons": True}


def budget(model: str, pruning: dict | None = None, **heads) -> HeadBudget | CostBudget | None:
    return budget_of(
        HeadPruningArguments(**heads), PruningArguments(**(pruning or {})), zoo.build(model), SequenceLengths(8)
    )


@pytest.mark.parametrize("model", ["bart", "marian", "t5"])
def test_numbers_by_kind(model: str) -> None:
    structure = describe(zoo.build(model))  # three layers of 4 heads in each attention
    assert budget(model, num_of_heads=7).groups(structure) == ((head_rows(structure), 7),)
    assert heads_left(budget(model, num_of_heads=7), structure) == 7
    found = budget(model, num_of_heads_decoder_self=2, num_of_heads_encoder_self=0)
    groups = [({kind_of_row(row) for row in rows}, len(rows), count) for rows, count in found.groups(structure)]
    assert groups == [({"encoder.attention"}, 3, 0), ({"decoder.attention"}, 3, 2)]
    assert heads_left(found, structure) == 14
    assert budget(model) is None
    with pytest.raises(ValueError, match="13 heads of decoder.cross_attention .* the model has 12; give"):
        budget(model, num_of_heads_cross=13)


def test_a_fraction_of_the_cost() -> None:
    found = budget("bert", {"target_sparsity": 0.5, "pruning_budget": "macs"}, gate_neurons=True)
    assert found.kinds == ("heads", "neurons") and found.sparsity == 0.5
    # Per head of 8 features: four projections of 32 wide over 8 tokens, scores and their application.
    heads, neurons = 4 * 32 * 8 * 8 + 2 * 8 * 8 * 8, 2 * 32 * 8
    units, allowed = found.split(describe(zoo.build("bert")))
    assert units.unique().tolist() == [neurons, heads]
    assert allowed == pytest.approx(0.5 * (12 * heads + 72 * neurons))
    only = budget("bert", {"target_sparsity": 0.3})
    assert only.kinds == ("heads",) and len(only.split(describe(zoo.build("bert")))[0]) == 12
    with pytest.raises(ValueError, match="0.9 would leave none of the heads: with one left it is 0.66.*ask for less"):
        budget("bert", {"target_sparsity": 0.9})


def test_operations_of_the_texts_that_a_decoder_writes() -> None:
    model, pruning = zoo.build("marian"), PruningArguments(target_sparsity=0.5, pruning_budget="macs")
    found = budget_of(HeadPruningArguments(**BY_COST), pruning, model, SequenceLengths(8, 3))
    assert found.costs == mac_costs(model, 8, 3) != mac_costs(model, 8)


def test_the_heads_of_an_order_by_kind() -> None:
    structure = describe(zoo.build("bart"))
    heads = [(row.name, unit) for row in head_rows(structure) for unit in range(row.units)]
    shuffled = torch.randperm(len(heads), generator=torch.Generator().manual_seed(0)).tolist()
    order = HeadOrder(structure, tuple(heads[index] for index in shuffled), 4)
    assert keep_by_order(order, HeadBudget(9)) == order.keeping(9)
    by_kind = HeadBudget({"decoder.cross_attention": 5, "encoder.attention": 0})
    sub_network = keep_by_order(order, by_kind)
    counts = heads_by_kind(sub_network, structure)
    assert list(counts) == ["encoder self-attention", "cross-attention", "decoder self-attention"]
    assert [count["kept"] for count in counts.values()] == [0, 5, 12]
    assert [count["of"] for count in counts.values()] == [12, 12, 12]
    cross = [head for head in order.removed if "cross" in head[0]]
    for name, unit in cross:
        assert (unit in kept_ids(sub_network[name])) == ((name, unit) in cross[-5:])


@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize("joint", [False, True])
def test_heads_and_neurons_share_a_budget(measure: str, joint: bool, tmp_path, monkeypatch) -> None:
    dense = zoo.without_dropout(zoo.build("bert"))
    final = {"target_sparsity": 0.4, "pruning_budget": measure}
    outcome = prune(tmp_path, {**BY_COST, "joint_pruning": joint}, final=final, do_eval=True)
    report = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    structure, sub_network = describe(dense), outcome.sub_network
    kept = [len(kept_ids(sub_network[s.name])) for s in structure]
    assert (report["heads"], report["neurons"]) == (sum(kept[::2]), sum(kept[1::2]))
    assert (report["dense_heads"], report["dense_neurons"]) == (12, 72)
    table, full = SizeTable(dense), SubNetwork.full(structure)
    parts = Parts(embeddings=False, norms=False, heads=False, biases=False)
    if measure == "params":
        sparsity = 1 - table.parameters(sub_network, parts) / table.parameters(full, parts)
    else:  # of the layers: pooler and classifier are the same in both
        head = table.macs(SubNetwork.of(structure, dict.fromkeys(structure.names)), 8)
        sparsity = 1 - (table.macs(sub_network, 8) - head) / (table.macs(full, 8) - head)
    assert report["sparsity"] == pytest.approx(sparsity, abs=1e-9) and 0.4 <= sparsity < 0.5
    assert report["settings"]["gate_neurons"] and report["settings"]["pruning_budget"] == measure
    assert f"Sparsity {sparsity:.4f} in {measure} (target 0.4)" in outcome.summary()
    small = AutoModelForSequenceClassification.from_pretrained(outcome.folder)
    assert small.num_parameters() == report["parameters"] < report["dense_parameters"]
    if not joint:
        inputs = zoo.inputs_for(dense)
        with Gates(dense, binary_gates(structure, sub_network)):
            wanted = zoo.logits(dense, inputs)
        assert (zoo.logits(small, inputs) - wanted).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="holds another run .target_sparsity was 0.4 and is 0.3"):
        prune(tmp_path, {**BY_COST, "joint_pruning": joint}, final={**final, "target_sparsity": 0.3})


def test_a_run_that_counts_heads_has_the_record_it_always_had(tmp_path) -> None:
    prune(tmp_path, DSP, max_steps=1)
    record = json.loads((tmp_path / "pruning" / "run.json").read_text())["arguments"]
    assert record["num_of_heads"] == 5 and not {"gate_neurons", "target_sparsity"} & set(record)


def test_voita_by_kind(tmp_path: Path, caplog) -> None:
    heads = {**VOITA, "num_of_heads": None, "num_of_heads_encoder_self": 2, "pruning_lr": 1e-4}
    outcome = prune(tmp_path, heads, max_steps=1)
    assert outcome.report["heads"] == 2 and "2 are to stay" in caplog.text
    history = json.loads((tmp_path / "pruning" / "trainer_state.json").read_text())["log_history"]
    assert any("lambda_1" in entry for entry in history)
