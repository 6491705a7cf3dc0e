"""Standard NAS: each candidate as a plain `Trainer` would train it, and a search that nothing stops for good."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, EvalPrediction, Trainer, default_data_collator

from hf_nas import SubNetwork, describe, extract, reorder
from hf_nas.importance import magnitude
from hf_nas.search import SearchFailed
from tests.trainer_plugins.search.standard_nas_world import accuracy, facts, make_trainer, start
from tests.trainer_plugins.worlds import rows
from trainer_plugins.search import candidates, standard_nas


ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search with its trainer, and the weights that the trainer's model had before."""
    folder = tmp_path_factory.mktemp("searched")
    run = make_trainer(folder)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    return start(folder, run), folder, run, before


def models_in(folder: Path) -> dict[SubNetwork, Path]:
    """Candidates whose weights are there."""
    found = (folder / "candidates").glob("*/sub_network.json")
    return {SubNetwork.load(path): path.parent for path in found}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def score(folder: Path, examples: list[dict]) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"] for row in examples])).logits
    labels = torch.tensor([row["labels"] for row in examples])
    return accuracy(EvalPrediction(logits.numpy(), labels.numpy()))["accuracy"]


def test_what_a_search_leaves_behind(searched):
    outcome, folder, run, _ = searched
    result = outcome.result
    assert len(result.trials) == 6 and [t.sub_network for t in result.trials[:2]] == [
        run.searched_space().largest,
        run.searched_space().smallest,
    ]
    for name in ("result.json", "evaluations.csv", "front.csv", "front.png", "journal.log"):
        assert (folder / "search" / name).stat().st_size > 0, name
    # The weights of the front, of the largest and of the chosen one, and no others.
    kept = {result.trials[index].sub_network for index in (*result.pareto, 0, outcome.chosen)}
    models = models_in(folder)
    assert models.keys() == kept and len(kept) < 6
    assert {path.name for path in (folder / "candidates").iterdir()} - {".lock"} == {p.name for p in models.values()}
    for trial in result.trials:
        if trial.sub_network in models:
            assert score(models[trial.sub_network], rows(72)[48:]) == pytest.approx(trial.metrics["accuracy"])
    # The chosen model is the fine-tuned one, and scores on the validation rows what the table says.
    chosen = result.trials[outcome.chosen].sub_network
    files = (outcome.chosen_folder / "model.safetensors", models[chosen] / "model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert score(outcome.chosen_folder, rows()[32:]) == pytest.approx(outcome.metrics["chosen_validation_accuracy"])


def test_bad_candidates_are_stopped_early(searched):
    outcome, folder, _, _ = searched
    epochs = [trial.metrics["epochs"] for trial in outcome.result.trials]
    # The first two cannot be compared; of the others some did not get beyond the first rung.
    assert epochs[:2] == [3, 3] and 1 in epochs[2:] and set(epochs) <= {1, 3}
    assert all(1 <= trial.metrics["best_epoch"] <= trial.metrics["epochs"] for trial in outcome.result.trials)


def plain_training(run, sub_network, folder):
    """Metrics and weights after each epoch by the Trainer of transformers, without anything of ours around it."""
    model = extract(run.model, sub_network)
    arguments = type(run.args)(
        str(folder), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=5e-3,
        lr_scheduler_type="constant", eval_strategy="epoch", save_strategy="epoch", report_to=[], use_cpu=True,
        disable_tqdm=True, seed=candidates._seed(run.args.seed, sub_network),
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        train_dataset=run.train_dataset,
        eval_dataset=rows(72)[48:],
        data_collator=default_data_collator,
        compute_metrics=accuracy,
    )
    trainer.train()
    found = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return list(zip(found, checkpoints, strict=True))


def test_a_candidate_is_what_a_plain_trainer_makes_of_it(searched, tmp_path):
    outcome, folder, run, _ = searched
    models = models_in(folder)
    later = 0
    for number, (sub_network, path) in enumerate(models.items()):
        trial = next(trial for trial in outcome.result.trials if trial.sub_network == sub_network)
        epochs = plain_training(run, sub_network, tmp_path / str(number))[: int(trial.metrics["epochs"])]
        best = max(range(len(epochs)), key=lambda index: epochs[index][0])
        assert trial.metrics["accuracy"] == epochs[best][0] and trial.metrics["best_epoch"] == best + 1
        expected = load_file(epochs[best][1] / "model.safetensors")
        found = load_file(path / "model.safetensors")
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
        later += best > 0
    assert later  # for some of them it matters which epoch is kept


def test_the_pretrained_model_is_put_in_order_and_not_trained(searched):
    _, _, run, before = searched
    model = make_trainer(run.args.output_dir).model
    assert same(model.state_dict(), before) and not same(run.model.state_dict(), before)
    reorder(model, describe(model), magnitude(model, describe(model), ()))
    assert same(model.state_dict(), run.model.state_dict())


def test_without_importance_units_keep_their_places(tmp_path):
    run = make_trainer(tmp_path, importance="none")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    outcome = start(tmp_path, run, num_samples=2, search_strategy="random_search")
    assert same(run.model.state_dict(), before)
    # No early stopping with any other strategy.
    assert [trial.metrics["epochs"] for trial in outcome.result.trials] == [3, 3]


def test_interrupted_and_resumed(searched, tmp_path, monkeypatch):
    outcome, _, _, _ = searched
    decide, decisions = candidates.Candidates._decide, []

    def die(self, *arguments):
        decisions.append(arguments)
        if len(decisions) == 5:  # within the second candidate
            raise KeyboardInterrupt
        return decide(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(candidates.Candidates, "_decide", die)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
    assert len(models_in(tmp_path)) == 1
    assert facts(start(tmp_path)) == facts(outcome)
    trained = []
    monkeypatch.setattr(candidates.Candidates, "_train", lambda self, sub_network: trained.append(sub_network))
    # Once more, there is nothing to train; with a demand another one is chosen.
    assert facts(start(tmp_path)) == facts(outcome) and not trained


def test_what_is_not_kept_is_trained_again(searched, tmp_path, caplog):
    outcome, folder, run, _ = searched
    shutil.copytree(folder / "candidates", tmp_path / "candidates")
    dominated = next(i for i in range(6) if i not in (*outcome.result.pareto, 0, outcome.chosen))
    trial = outcome.result.trials[dominated]
    found = candidates.Candidates(
        run,
        standard_nas.scored(rows(72)[48:], accuracy),
        {},
        tmp_path / "candidates",
        metric_name="accuracy",
        greater_is_better=True,
    )
    assert trial.sub_network not in models_in(tmp_path)
    found.ensure(trial.sub_network, trial.metrics)
    assert score(models_in(tmp_path)[trial.sub_network], rows(72)[48:]) == pytest.approx(trial.metrics["accuracy"])
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "second" in record.message]
    found.ensure(trial.sub_network, {**trial.metrics, "accuracy": -1.0})  # is there, so nothing is compared
    found.delete([trial.sub_network])
    found.ensure(trial.sub_network, {**trial.metrics, "accuracy": -1.0})
    assert "after a second training and had -1.0000 in the search" in caplog.text


def test_the_time_ends_the_training_under_way(searched, tmp_path):
    _, _, run, _ = searched
    outcome = start(tmp_path, run, search_strategy="random_search", num_samples=None, runtime=1e-3)
    assert [trial.metrics["epochs"] for trial in outcome.result.trials] == [1]


def test_a_limit_and_the_largest_beside_it(tmp_path, monkeypatch):
    outcome = start(tmp_path, num_samples=2, max_params_ratio=0.5)
    space_largest = SubNetwork.full(describe(make_trainer(tmp_path).model))
    sizes = [trial.costs[1] for trial in outcome.result.trials]
    assert max(sizes) <= 0.5 and outcome.metrics["chosen_params_ratio"] <= 0.5
    models = models_in(tmp_path)
    assert space_largest in models
    table = json.loads((tmp_path / "search" / "front.json").read_text())
    assert table
    recorded = json.loads((models[space_largest] / "metrics.json").read_text())["metrics"]
    assert recorded["epochs"] == 3
    assert score(models[space_largest], rows(72)[48:]) == pytest.approx(recorded["accuracy"])
    # It is not trained again.
    monkeypatch.setattr(candidates.Candidates, "_train", None)
    assert facts(start(tmp_path, num_samples=2, max_params_ratio=0.5)) == facts(outcome)


def world(output_dir: Path, *command: str, **settings) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    world = "tests.trainer_plugins.search.standard_nas_world"
    return subprocess.Popen(
        [sys.executable, *command, "-m", world, str(output_dir), json.dumps(settings)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]


def test_killed_in_mid_candidate(searched, tmp_path):
    outcome, _, _, _ = searched
    process = world(tmp_path, pause=0.5)
    # The first candidate is done, the second one in training.
    deadline = time.monotonic() + 200
    while len(models_in(tmp_path)) < 1 or len(list((tmp_path / "candidates").iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert facts(start(tmp_path)) == facts(outcome)
    assert {p.name for p in (tmp_path / "candidates").iterdir()} - {".lock"} == {
        path.name for path in models_in(tmp_path).values()
    }


def test_two_processes_share_a_search(searched, tmp_path):
    outcome, _, run, _ = searched
    options = {"search_strategy": "random_search", "num_samples": 8}
    process = world(tmp_path, name="other", pause=0.1, **options)
    while not (tmp_path / "search" / "journal.log").exists():
        assert process.poll() is None
        time.sleep(0.05)
    mine = start(tmp_path, run, **options)
    finish(process)
    theirs = json.loads((tmp_path / "other_0.json").read_text())
    assert theirs == facts(mine)
    assert len({trial.sub_network for trial in mine.result.trials}) == 8
    # Each metric is that of a training by one process alone.
    alone = {trial.sub_network: trial for trial in outcome.result.trials if trial.metrics["epochs"] == 3}
    shared = [trial for trial in mine.result.trials if trial.sub_network in alone]
    assert shared and all(trial.metrics == alone[trial.sub_network].metrics for trial in shared)
    kept = {mine.result.trials[i].sub_network for i in (*mine.result.pareto, mine.chosen)}
    assert kept <= models_in(tmp_path).keys()


def test_all_processes_of_a_torchrun_train_each_candidate(tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    command += ["--rdzv_endpoint=localhost:0"]
    # Two processes together see the batches of one in this order alone; Adam would blow up rounding differences.
    training = {"train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.05, "dropout": 0.0}
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    shared = {**training, "per_device_train_batch_size": 4, "ddp_backend": "gloo"}
    finish(world(two, *command, num_samples=2, training=shared))
    ranks = [json.loads((two / f"outcome_{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    alone = start(one, num_samples=2, training=training)
    for (encoding, _, metrics), trial in zip(ranks[0]["trials"], alone.result.trials, strict=True):
        assert tuple(encoding) == trial.encoding and metrics["epochs"] == trial.metrics["epochs"]
        assert metrics["loss"] == pytest.approx(trial.metrics["loss"], abs=1e-4)
    assert len(models_in(two)) >= 2


def test_a_training_that_diverges_is_recorded_as_failed(tmp_path):
    run = make_trainer(tmp_path, learning_rate=1e30)
    with pytest.raises(SearchFailed, match="FloatingPointError: the loss is not finite .* lower the learning rate"):
        start(tmp_path, run)
    assert not models_in(tmp_path)


def test_the_journal_of_another_training_is_refused(searched):
    _, folder, _, _ = searched
    with pytest.raises(ValueError, match="holds another search .training: "):
        start(folder, training={"learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"nas_type": "weight_sharing"}, "nas_type is 'weight_sharing'.*call run_search"),
        ({}, {"race": True}, "racing gives up evaluations, not trainings; choose the strategy moasha"),
        ({"train_dataset": None}, {}, "no training set to fine-tune candidates on; give it a train_dataset"),
        ({}, {"search_strategy": "grid"}, "Unknown search method 'grid'"),
        ({}, {"num_samples": 0}, "num_samples must be 1 or more"),
    ],
)
def test_refused(tmp_path, change, settings, message):
    run = make_trainer(tmp_path)
    for name, value in change.items():
        setattr(run, name, value)
    with pytest.raises(ValueError, match=message):
        start(tmp_path, run, **settings)


def test_an_unknown_metric_is_refused(tmp_path):
    run = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="no metric 'f1' but .*accuracy.*; search by one of these"):
        standard_nas.run_standard_nas(
            run,
            standard_nas.SearchArguments(nas_type="standard", search_strategy="moasha", num_samples=2),
            selection_dataset=rows(72)[48:],
            compute_metrics=accuracy,
            metric_name="f1",
            output_dir=tmp_path,
        )
