"""Budgets of CoFi: each is met as it is measured."""

import pytest
import torch

from hf_nas.gates import UnitGates
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import LatencyTable, linear_costs, mac_costs
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.trainer_plugins.pruning_world import prune
from trainer_plugins.pruning.budget import PruningBudget


def test_a_budget_of_operations_and_one_of_latency(tmp_path, monkeypatch) -> None:
    outcome = prune(
        tmp_path, pruning={"pruning_budget": "macs", "do_final_finetune": False, "target_sparsity": 0.3},
        save_strategy="no",
    )  # fmt: skip
    costs = mac_costs(zoo.build("bert"), 8)
    assert outcome.report["sparsity"] == costs.sparsity(outcome.sub_network) >= 0.3
    measure = LatencyTable.measure
    monkeypatch.setattr(
        LatencyTable, "measure",
        lambda *args, **lengths: measure(*args, **lengths, widths=2, num_networks=4, repeats=1, progress=False),
    )  # fmt: skip
    model = zoo.build("bert")
    budget = PruningBudget.of("latency", model, tmp_path / "latency", SequenceLengths(8), 1)
    monkeypatch.setattr(LatencyTable, "measure", None)  # the second time nothing is measured
    assert PruningBudget.of("latency", model, tmp_path / "latency", SequenceLengths(8), 1).costs == budget.costs
    assert budget.costs.total > 0 and not budget.costs.per_dimension
    table = LatencyTable.load(tmp_path / "latency" / "latency.json", describe(model))
    full, half = SubNetwork.full(describe(model)), SubNetwork.of(describe(model), {"encoder.0.attention": 2})
    assert budget.sparsity(half) == 1 - table.predict(half) / table.predict(full) and budget.sparsity(full) == 0
    with pytest.raises(ValueError, match="pruning_budget is 'flops'; choose one of params, macs, latency"):
        PruningBudget.of("flops", model, tmp_path, SequenceLengths(8), 1)


def test_budgets_of_encoder_decoders_count_the_texts_that_they_write(tmp_path, monkeypatch) -> None:
    model, lengths = zoo.build("marian"), SequenceLengths(8, 3)
    costs = PruningBudget.of("macs", model, tmp_path, lengths, 1).costs
    assert costs == mac_costs(model, 8, 3) != PruningBudget.of("macs", model, tmp_path, SequenceLengths(8), 1).costs
    measured = []

    def measure(*args, **lengths):
        measured.append(lengths)
        raise KeyboardInterrupt

    monkeypatch.setattr(LatencyTable, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        PruningBudget.of("latency", model, tmp_path, lengths, 1)
    assert measured == [{"sequence_length": 8, "decoder_length": 3}]


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_the_target_is_met_as_measured_where_costs_do_not_add_up(power: float) -> None:
    """Units cost as much as a straight line says, and the measure is a curve above or below it."""
    model = zoo.build("bert")

    def seconds(sub_network: SubNetwork) -> float:
        parts = ((count or 0) / units for count, units in zip(sub_network.counts(), sub_network.units))
        return 0.1 + sum(part**power for part in parts)

    budget = PruningBudget(linear_costs(model, seconds), seconds)
    for target in (0.1, 0.4, 0.7):
        with UnitGates(model, ("heads", "neurons")) as gates:
            with torch.no_grad():
                for number, parameter in enumerate(gates.parameters()):
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
            realised = budget.sparsity(budget.project(gates, target).sub_network(gates.structure))
            # As little above as one unit makes.
            assert target <= realised <= target + 0.1, (target, realised)
    with UnitGates(model, ("heads",)) as gates, pytest.raises(ValueError, match="0.9 cannot be met by pruning heads"):
        budget.project(gates, 0.9)
