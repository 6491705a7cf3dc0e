"""A search ends in a front, a table, a picture and a model that loads; a second run continues the first."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, EvalPrediction

from hf_nas import SubNetwork, describe
from hf_nas.elastic import is_elastic
from hf_nas.profiling import LatencyPlan, LatencyTable, Parts, SizeTable
from hf_nas.report import RelativeSizes, handover, read_outcome
from hf_nas.search import SuperNetworkEvaluator
from tests import zoo
from tests.trainer_plugins.worlds import rows, trainer
from trainer_plugins import NasArguments, SearchArguments, check_arguments, run_search
from trainer_plugins.search import task_evaluation


ROOT = Path(__file__).parents[3]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Pictures take seconds; one test draws them."""
    if request.function is not test_what_a_search_leaves_behind:
        for name in ("plot_front", "plot_progress"):
            monkeypatch.setattr(handover, name, lambda *_: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("trained"), "sandwich", max_steps=30)
    run.train()
    return run


def start(run, output_dir, selection=None, compute_metrics=accuracy, **settings):
    return run_search(
        run,
        SearchArguments(do_search=True, **{"num_samples": 14, "search_strategy": "random_search", **settings}),
        selection_dataset=selection or rows()[:32],
        compute_metrics=compute_metrics,
        report_datasets={"validation": rows()[32:]},
        output_dir=output_dir,
    )


def test_what_a_search_leaves_behind(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path)
    assert len(outcome.result.trials) == 14 == outcome.metrics["search_evaluations"]
    for name in (
        "result.json",
        "evaluations.csv",
        "front.json",
        "front.csv",
        "front.png",
        "progress.png",
        "journal.log",
    ):
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


def test_the_outcome_can_be_read_again(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, num_samples=5)
    assert read_outcome(tmp_path) == outcome


def test_running_again_continues_and_repeats_nothing(trained, tmp_path, monkeypatch) -> None:
    evaluated: list[SubNetwork] = []

    class Counting(SuperNetworkEvaluator):
        def __call__(self, sub_network):
            evaluated.append(sub_network)
            return super().__call__(sub_network)

    whole = start(trained, tmp_path / "whole")
    start(trained, tmp_path / "parts", num_samples=9)
    monkeypatch.setattr(task_evaluation, "SuperNetworkEvaluator", Counting)
    parts = start(trained, tmp_path / "parts")
    # Five new ones; the rest is the report on the validation rows.
    reported = len({*parts.result.pareto, parts.chosen, 0})
    assert len(evaluated) == 5 + reported
    assert [t.sub_network for t in parts.result.trials] == [t.sub_network for t in whole.result.trials]
    assert [t.costs for t in parts.result.trials] == [t.costs for t in whole.result.trials]


def test_a_limit_limits_the_search_and_the_choice(trained, tmp_path) -> None:
    small = start(trained, tmp_path, max_params_ratio=0.5)
    sizes = RelativeSizes(SizeTable(trained.model), 8)
    assert len(small.result.trials) == 14
    assert all(sizes.params_ratio(trial.sub_network) <= 0.5 for trial in small.result.trials)
    assert small.result.trials[small.chosen].costs[0] == min(trial.costs[0] for trial in small.result.trials)
    # The largest one is no trial, but stands in the table with what it reaches.
    largest = small.table.largest
    assert (largest.index, largest.parameters_share, largest.on_front) == (14, 1.0, False)
    everything = start(trained, tmp_path / "everything").table.largest
    assert (largest.metric, largest.reported) == (everything.metric, everything.reported)
    assert everything.reported is not None
    with pytest.raises(ValueError, match="holds another search .*constraints"):
        start(trained, tmp_path, max_params_ratio=0.6)
    with pytest.raises(ValueError, match="The limit of parameters is 0.001"):
        start(trained, tmp_path / "tiny", max_params_ratio=0.001)


def test_a_demand_chooses(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path)
    best = max(trial.metrics["accuracy"] for trial in outcome.result.trials)
    good = start(trained, tmp_path, min_metric=best)
    assert good.result.trials[good.chosen].metrics["accuracy"] == best
    with pytest.raises(ValueError, match="1.5"):
        start(trained, tmp_path, min_metric=1.5)


def test_a_drop_refers_to_the_largest_even_beyond_the_limit(trained, tmp_path) -> None:
    # Labels as the largest one predicts them, so that it is the best.
    selection = rows(80)
    with torch.no_grad():
        ids = torch.tensor([row["input_ids"] for row in selection])
        predicted = trained.create_super_network().model.eval()(input_ids=ids).logits.argmax(-1).tolist()
    selection = [{**row, "labels": label} for row, label in zip(selection, predicted)]
    sizes = RelativeSizes(SizeTable(trained.model), 8)

    def search(**demands):
        return start(trained, tmp_path, selection=selection, max_params_ratio=0.7, num_samples=20, **demands)

    def fewest_macs(trials, metric):
        near = [sizes.macs_ratio(trial.sub_network) for trial in trials if trial.metrics["accuracy"] > metric]
        return min(near, default=None)

    without = search()
    assert without.table.largest.metric == 1.0
    best = max(trial.metrics["accuracy"] for trial in without.result.trials)
    assert best < 1.0
    # Drops with which it would be another one, were the best within the limit the reference.
    drops = [
        drop
        for drop in np.arange(0.01, 0.5, 0.02).tolist()
        if fewest_macs(without.result.trials, 1.0 - drop)
        not in (None, fewest_macs(without.result.trials, best - drop))
    ]
    outcome = search(max_metric_drop=drops[0])
    assert outcome.result == without.result
    chosen = outcome.result.trials[outcome.chosen].sub_network
    assert sizes.macs_ratio(chosen) == fewest_macs(outcome.result.trials, 1.0 - drops[0])


def pretend_to_measure(monkeypatch) -> list[tuple]:
    """Have latencies made up: in proportion to the parameters, and longer each time. What is measured is noted."""
    noted = []

    def measure(model, batch_size, sequence_length, decoder_length):
        noted.append((model, batch_size, sequence_length))
        plan = LatencyPlan.of(describe(model), widths=2, num_networks=2)
        parameters = [SizeTable(model).parameters(sub_network, Parts.encoder()) for sub_network in plan.sub_networks]
        settings = {
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "decoder_length": decoder_length,
            "machine": {},
        }
        return LatencyTable.fit(plan, [1e-2 * len(noted) + 1e-5 * count for count in parameters], settings)

    monkeypatch.setattr(LatencyTable, "measure", measure)
    return noted


def test_the_latency_is_measured_once(trained, tmp_path, monkeypatch) -> None:
    noted = pretend_to_measure(monkeypatch)
    settings = {"search_objectives": ["params", "latency", "error"], "max_latency_ratio": 0.9, "latency_batch_size": 2}
    outcome = start(trained, tmp_path, num_samples=4, **settings)
    table = LatencyTable.load(tmp_path / "search" / "latency_table.json", describe(trained.model))
    assert outcome.result.objectives == ("error", "parameters", "latency")
    full = table.predict(SubNetwork.full(table.structure))
    for trial in outcome.result.trials:
        assert trial.costs[2] == pytest.approx(table.predict(trial.sub_network) / full) and trial.costs[2] <= 0.9
    assert outcome.result.trials[outcome.chosen].costs[0] == min(trial.costs[0] for trial in outcome.result.trials)
    ((model, *sizes),) = noted
    assert sizes == [2, 8] and not is_elastic(model)  # all rows have 8 tokens
    longer = start(trained, tmp_path, num_samples=6, **settings)
    assert len(noted) == 1 and longer.result.trials[:4] == outcome.result.trials
    with pytest.raises(ValueError, match="batches of 2 with 8 tokens, and asked for are those of batches of 3 with 8"):
        start(trained, tmp_path, **{**settings, "latency_batch_size": 3})
    # Measured anew, the numbers are not those that the journal holds.
    (tmp_path / "search" / "latency_table.json").unlink()
    with pytest.raises(ValueError, match="holds another search .*latency_table"):
        start(trained, tmp_path, **settings)


def test_memory_and_macs_are_known_without_a_measurement(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, num_samples=4, search_objectives=["error", "memory", "macs"])
    assert outcome.result.objectives == ("error", "memory", "macs")
    assert outcome.result.trials[0].costs[1:] == (1.0, 1.0)
    assert all(0 < cost < 1 for trial in outcome.result.trials[1:] for cost in trial.costs[1:])
    assert not (tmp_path / "search" / "latency_table.json").exists()


@pytest.mark.parametrize("strategy", ["model_based", "additive"])
def test_methods_that_need_more_than_a_space(trained, tmp_path, strategy) -> None:
    outcome = start(trained, tmp_path, num_samples=24, search_strategy=strategy)
    assert outcome.result.method == strategy and len({t.sub_network for t in outcome.result.trials}) == 24


def test_additive_scores_by_the_importance_of_the_trainer(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        trained, "super_network_arguments", replace(trained.super_network_arguments, importance="gradient")
    )
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    outcome = start(trained, tmp_path, num_samples=22, search_strategy="additive")
    assert len(outcome.result.trials) == 22
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())


def test_time_ends_a_search(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, num_samples=None, runtime=1e-9)
    assert len(outcome.result.trials) == 1
    assert SearchArguments().most_samples == 100
    assert SearchArguments(runtime=5.0).most_samples is None
    assert SearchArguments(runtime=5.0, num_samples=7).most_samples == 7


def test_the_search_is_recorded_where_it_is_said(trained, tmp_path) -> None:
    storage = tmp_path / "elsewhere" / "shared.log"
    first = start(trained, tmp_path / "first", search_storage=str(storage), num_samples=6)
    second = start(trained, tmp_path / "second", search_storage=str(storage), num_samples=6)
    assert second.result == first.result and storage.is_file()
    assert not list(tmp_path.rglob("journal.log"))


def test_racing_gives_up_some_and_hands_over_none_of_them(trained, tmp_path) -> None:
    generator = np.random.default_rng(0)
    many = [rows(40)[index] for index in generator.integers(40, size=160)]
    raced = start(trained, tmp_path, selection=many, num_samples=24, race=True)
    rejected = {index for index, trial in enumerate(raced.result.trials) if trial.rejected}
    assert rejected and raced.metrics["search_rejected"] == len(rejected)
    assert not rejected & {*raced.result.pareto, raced.chosen, *(row.index for row in raced.table.rows)}
    # What was evaluated fully has the metric of the plain evaluation.
    evaluate = SuperNetworkEvaluator(trained.super_network, many, trained.data_collator, accuracy)
    for index in raced.result.pareto:
        trial = raced.result.trials[index]
        assert trial.metrics["accuracy"] == pytest.approx(evaluate(trial.sub_network)["accuracy"], abs=1e-9)
    with pytest.raises(ValueError, match="holds another search .*race"):
        start(trained, tmp_path, selection=many, num_samples=24)


def test_the_precision_of_the_trainer_is_that_of_the_search(tmp_path, monkeypatch) -> None:
    precisions = []

    class Noting(SuperNetworkEvaluator):
        def __init__(self, *arguments, **options):
            precisions.append(options["precision"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(task_evaluation, "SuperNetworkEvaluator", Noting)
    run = trainer(tmp_path / "run", "sandwich", max_steps=2, bf16=True)
    run.train()
    effort = {"widths": 2, "num_networks": 2, "repeats": 1, "progress": False}
    monkeypatch.setattr(LatencyTable, "measure", partial(LatencyTable.measure, **effort))
    outcome = start(run, tmp_path, num_samples=4, search_objectives=["error", "latency"])
    assert set(precisions) == {"bf16"} and len(outcome.result.trials) == 4
    model = AutoModelForSequenceClassification.from_pretrained(outcome.chosen_folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert task_evaluation.precision_of(trainer(tmp_path, bf16_full_eval=True).args) == "bf16"
    assert task_evaluation.precision_of(trainer(tmp_path).args) is None


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


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"nas_type": "both"}, "nas_type is 'both'; choose one of weight_sharing, standard"),
        ({"search_strategy": "moasha"}, "'moasha', which stops trainings early"),
        ({"search_strategy": "grid"}, "Unknown search method 'grid'"),
        ({"race": True, "nas_type": "standard"}, "leave out --race, or choose the search strategy moasha"),
        ({"race": True}, "Racing compares means over examples, and 'f1'"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"runtime": 0.0}, "runtime is 0.0"),
        ({"latency_batch_size": 0}, "latency_batch_size is 0"),
        ({"max_latency_ratio": 1.5}, "max_latency_ratio is 1.5"),
        ({"max_params_ratio": 0.01}, "The limit of parameters is 0.01, but the smallest"),
        ({"search_objectives": ["error", "speed"]}, "give error and one or more of params, macs, latency, memory"),
        ({"search_objectives": ["params", "macs"]}, "give error and one or more of"),
        ({"search_objectives": ["error", "params", "params"]}, "each once"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_arguments(
            NasArguments(search=SearchArguments(do_search=True, **settings)), zoo.build("bert"), metric_name="f1"
        )


def test_what_the_model_cannot_be_measured_by_is_refused_before_the_training() -> None:
    def check(model, greater_is_better=True, **settings):
        search = SearchArguments(do_search=True, **settings)
        check_arguments(
            NasArguments(search=search), model, metric_name="accuracy", greater_is_better=greater_is_better
        )

    eager = zoo.build("bert", attention="eager")
    with pytest.raises(ValueError, match="'eager'.*attn_implementation='sdpa'"):
        check(eager, search_objectives=["error", "memory"])
    with pytest.raises(ValueError, match="of 'accuracy' less is better"):
        check(eager, greater_is_better=False, race=True)
    everything = ["error", "params", "macs", "latency", "memory"]
    check(zoo.build("bert"), search_objectives=everything, race=True, max_latency_ratio=0.5, max_params_ratio=0.5)


def test_a_search_refuses_what_is_not_its_own(trained, tmp_path) -> None:
    with pytest.raises(ValueError, match="run_standard_nas"):
        start(trained, tmp_path, nas_type="standard")
    with pytest.raises(ValueError, match="There is no metric"):
        start(trained, tmp_path, compute_metrics=None)


def numbers(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"outcome_{rank}.json").read_text())


def test_two_processes_find_what_one_finds_and_end_together(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", "tests.trainer_plugins.search_world"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case in ("plain", "raced", "limited"):
        first, second = (numbers(tmp_path / case, rank) for rank in range(2))
        alone = numbers(tmp_path / case / "alone", 0)
        assert first["outcome"] == second["outcome"] == alone["outcome"]
        # Neither did all of the work.
        assert first["rows"] + second["rows"] == alone["rows"] and min(first["rows"], second["rows"]) > 0
    refused = [numbers(tmp_path / "refused", rank)["refused"] for rank in range(2)]
    assert refused[0].startswith("No evaluated sub-network has a accuracy of at least 1.5")
    assert refused[1] == f"The first process ended with ValueError: {refused[0]}"
    # One candidate failed in the second process alone, and the search went on without it.
    first, second = (numbers(tmp_path / "failing", rank)["outcome"] for rank in range(2))
    assert first == second and len(first["trials"]) == 8
    (failure,) = [line for line in (tmp_path / "failing" / "search" / "journal.log").open() if '"failure"' in line]
    assert "process 1: ArithmeticError: this one overflows" in failure
