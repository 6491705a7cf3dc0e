"""A search ends in a front, a table, a picture and a model that loads; a second run continues the first."""

import csv
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, EvalPrediction

from hf_nas import SubNetwork, describe
from tests.trainer.worlds import rows, trainer
from trainer_plugins import SearchArguments, run_search, search


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("trained"), "sandwich", max_steps=30)
    run.train()
    return run


def start(run, output_dir, selection=None, **settings):
    return run_search(
        run,
        SearchArguments(do_search=True, **{"num_samples": 14, **settings}),
        selection_dataset=selection or rows()[:32],
        compute_metrics=accuracy,
        report_datasets={"validation": rows()[32:]},
        output_dir=output_dir,
    )


def test_what_a_search_leaves_behind(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path)
    assert len(outcome.result.trials) == 14 == outcome.metrics["search_evaluations"]
    for name in ("result.json", "evaluations.csv", "front.json", "front.csv", "front.png", "journal.log"):
        assert (tmp_path / "search" / name).stat().st_size > 0, name
    with open(tmp_path / "search" / "front.csv") as file:
        table = list(csv.DictReader(file))
    assert sum(row["chosen"] in ("True", "true", "1") for row in table) == 1
    structure = describe(trained.model)
    for index in outcome.result.pareto:
        saved = SubNetwork.load(tmp_path / "search" / "sub_networks" / f"{index}.json", structure)
        assert saved == outcome.result.trials[index].sub_network
    # The extracted model scores on the validation rows what the table says.
    model = AutoModelForSequenceClassification.from_pretrained(outcome.chosen_folder).eval()
    held_out = rows()[32:]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"] for row in held_out])).logits
    labels = np.array([row["labels"] for row in held_out])
    assert accuracy(EvalPrediction(logits.numpy(), labels))["accuracy"] == pytest.approx(
        outcome.metrics["chosen_validation_accuracy"]
    )
    assert sum(p.numel() for p in model.parameters()) == outcome.metrics["chosen_parameters"]
    # The first ones are the largest and the smallest, and the front holds no dominated one.
    space = trained.search_space
    assert [trial.sub_network for trial in outcome.result.trials[:2]] == [space.largest, space.smallest]


def test_other_processes_read_what_the_first_one_found(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, num_samples=5)
    assert search._read_outcome(tmp_path) == outcome


def test_running_again_continues_and_repeats_nothing(trained, tmp_path, monkeypatch) -> None:
    evaluated: list[SubNetwork] = []

    class Counting(search.SuperNetworkEvaluator):
        def __call__(self, sub_network):
            evaluated.append(sub_network)
            return super().__call__(sub_network)

    whole = start(trained, tmp_path / "whole")
    start(trained, tmp_path / "parts", num_samples=9)
    monkeypatch.setattr(search, "SuperNetworkEvaluator", Counting)
    parts = start(trained, tmp_path / "parts")
    # Five new ones; the rest is the report on the validation rows.
    reported = len({*parts.result.pareto, parts.chosen, 0})
    assert len(evaluated) == 5 + reported
    assert [t.sub_network for t in parts.result.trials] == [t.sub_network for t in whole.result.trials]
    assert [t.costs for t in parts.result.trials] == [t.costs for t in whole.result.trials]


def test_a_budget_chooses(trained, tmp_path) -> None:
    small = start(trained, tmp_path, max_params_ratio=0.5)
    assert small.metrics["chosen_params_ratio"] <= 0.5
    within = [t.costs[0] for t in small.result.trials if t.costs[1] <= 0.5]
    assert small.result.trials[small.chosen].costs[0] == min(within)
    best = max(trial.metrics["accuracy"] for trial in small.result.trials)
    good = start(trained, tmp_path, min_metric=best)
    assert good.result.trials[good.chosen].metrics["accuracy"] == best
    with pytest.raises(ValueError, match="1.5"):
        start(trained, tmp_path, min_metric=1.5)


def test_the_journal_of_another_model_or_selection_set_is_refused(trained, tmp_path) -> None:
    start(trained, tmp_path, num_samples=3)
    with pytest.raises(ValueError, match="journal.log"):
        start(trained, tmp_path, selection=rows()[:24])
    other = trainer(tmp_path / "other", "sandwich", max_steps=1)
    other.train()
    with pytest.raises(ValueError, match="journal.log"):
        start(other, tmp_path)


def test_searching_leaves_the_super_network_as_it_was(trained, tmp_path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    start(trained, tmp_path, num_samples=4)
    assert trained.super_network.active == trained.super_network.full
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())


def test_results_are_plain_json(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, num_samples=5)
    result = json.loads((tmp_path / "search" / "result.json").read_text())
    assert result["pareto"] == list(outcome.result.pareto) and all(isinstance(i, int) for i in result["pareto"])
