"""Weight-sharing and standard NAS of a model of images: training, search, front and a small model that loads."""

import json

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    TrainingArguments,
    ViTImageProcessorPil,
    default_data_collator,
)

from hf_nas import describe
from hf_nas.elastic import is_elastic, plain_copy_of
from hf_nas.gates import Gates, binary_gates
from hf_nas.nncf_config import NncfConfig
from hf_nas.profiling import LatencyTable, SizeTable
from hf_nas.report import handover
from hf_nas.search import SuperNetworkEvaluator
from tests import zoo
from trainer_plugins import (
    HeadPruningArguments,
    NasArguments,
    SearchArguments,
    SuperNetworkArguments,
    SuperNetworkTrainer,
    check_arguments,
    run_head_pruning,
    run_search,
    run_standard_nas,
)
from trainer_plugins.arguments import PruningArguments
from trainer_plugins.head_pruning.front import ORDER_FILE
from trainer_plugins.search import task_evaluation


TOKENS = 10  # of an image of 12 x 12 pixels, in patches of 4 x 4


def rows(count: int, seed: int) -> list[dict]:
    """Noise whose label can be learnt: it is the channel that is a little brighter."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 12, 12, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    images[torch.arange(count), labels] += 0.15
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels)]


SELECTION, VALIDATION = rows(64, 4), rows(48, 5)


def stack(examples: list[dict]) -> tuple[torch.Tensor, np.ndarray]:
    return torch.stack([row["pixel_values"] for row in examples]), np.array([row["labels"] for row in examples])


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(output_dir, strategy: str | None = "sandwich", **settings) -> SuperNetworkTrainer:
    arguments = TrainingArguments(
        str(output_dir),
        **{
            "per_device_train_batch_size": 16, "max_steps": 40, "learning_rate": 5e-3, "save_strategy": "no",
            "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0, **settings,
        },
    )  # fmt: skip
    return SuperNetworkTrainer(
        model=zoo.without_dropout(zoo.build("vit")),
        args=arguments,
        super_network=SuperNetworkArguments(strategy, search_space="medium", num_random_sub_nets=1),
        train_dataset=rows(160, 3),
        data_collator=default_data_collator,
        processing_class=ViTImageProcessorPil(size={"height": 12, "width": 12}),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures take seconds, and so do exact latencies."""
    for name in ("plot_front", "plot_progress"):
        monkeypatch.setattr(handover, name, lambda *_: None)
    measure = LatencyTable.measure

    def measure_little(model, **conditions):
        return measure(model, **conditions, widths=2, num_networks=2, repeats=1, progress=False)

    monkeypatch.setattr(LatencyTable, "measure", measure_little)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = make_trainer(tmp_path_factory.mktemp("trained"))
    run.train()
    return run


def start(run, output_dir, selection=SELECTION, **settings):
    return run_search(
        run,
        SearchArguments(do_search=True, **{"num_samples": 16, "search_strategy": "random_search", **settings}),
        selection_dataset=selection,
        compute_metrics=accuracy,
        report_datasets={"validation": VALIDATION},
        output_dir=output_dir,
    )


def test_a_search_measures_what_masks_compute_and_hands_over_what_slices_compute(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, search_objectives=["error", "params", "macs", "latency", "memory"])
    assert len(outcome.result.trials) == 16
    images, labels = stack(SELECTION)
    plain, structure = plain_copy_of(trained.model).eval(), describe(trained.model)
    assert not is_elastic(plain)
    for trial in outcome.result.trials:
        with Gates(plain, binary_gates(structure, trial.sub_network)), torch.no_grad():
            masked = plain(pixel_values=images).logits.numpy()
        assert trial.metrics == {"accuracy": (masked.argmax(-1) == labels).mean()}
    assert len({trial.metrics["accuracy"] for trial in outcome.result.trials}) > 4
    assert outcome.result.trials[0].metrics["accuracy"] > 0.6
    # The extracted model computes what the slices of the super-network do, and scores what the table says.
    small = AutoModelForImageClassification.from_pretrained(outcome.chosen_folder).eval()
    held_out, held_out_labels = stack(VALIDATION)
    chosen = outcome.result.trials[outcome.chosen].sub_network
    with trained.super_network.activated(chosen) as model, torch.no_grad():
        sliced, found = model.eval()(pixel_values=held_out).logits, small(pixel_values=held_out).logits
    assert (found - sliced).abs().max() <= 1e-5
    scored = accuracy(EvalPrediction(found.numpy(), held_out_labels))["accuracy"]
    assert outcome.metrics["chosen_validation_accuracy"] == pytest.approx(scored)
    assert sum(p.numel() for p in small.parameters()) == outcome.metrics["chosen_parameters"]
    assert AutoImageProcessor.from_pretrained(outcome.chosen_folder).size == {"height": 12, "width": 12}


def test_operations_latency_and_memory_are_those_of_an_image(trained, tmp_path) -> None:
    outcome = start(trained, tmp_path, num_samples=4, search_objectives=["error", "macs", "latency", "memory"])
    path = tmp_path / "search" / "latency_table.json"
    table, sizes = LatencyTable.load(path, describe(trained.model)), SizeTable(trained.model)
    assert (table.settings["batch_size"], table.settings["sequence_length"]) == (1, TOKENS)
    largest, smallest = (trial for trial in outcome.result.trials[:2])
    assert largest.costs[1:] == (1.0, 1.0, 1.0)
    full = sizes.macs(trained.super_network.full, TOKENS)
    assert smallest.costs[1] == pytest.approx(sizes.macs(smallest.sub_network, TOKENS) / full)
    assert smallest.costs[2] == pytest.approx(table.predict(smallest.sub_network) / table.predict(largest.sub_network))
    assert 0 < smallest.costs[3] < 1


def test_racing_gives_up_some_and_measures_the_rest_as_without(trained, tmp_path) -> None:
    many = rows(300, 8)
    raced = start(trained, tmp_path, selection=many, num_samples=24, race=True)
    rejected = [trial for trial in raced.result.trials if trial.rejected]
    assert rejected and raced.metrics["search_rejected"] == len(rejected)
    evaluate = SuperNetworkEvaluator(trained.super_network, many, default_data_collator, accuracy)
    for index in raced.result.pareto:
        trial = raced.result.trials[index]
        assert not trial.rejected
        assert trial.metrics["accuracy"] == pytest.approx(evaluate(trial.sub_network)["accuracy"], abs=1e-9)


@pytest.mark.parametrize("strategy", ["model_based", "additive"])
def test_layers_are_reused_and_change_nothing(trained, tmp_path, monkeypatch, strategy) -> None:
    evaluators = []

    class Noting(SuperNetworkEvaluator):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            evaluators.append(self)

    monkeypatch.setattr(task_evaluation, "SuperNetworkEvaluator", Noting)
    outcome = start(trained, tmp_path, search_strategy=strategy, num_samples=22)
    reused, computed = evaluators[0].reused_layers
    assert reused > 0.05 * computed
    plain = SuperNetworkEvaluator(
        trained.super_network, SELECTION, default_data_collator, accuracy, prefix_cache_bytes=0
    )  # fmt: skip
    assert all(trial.metrics == plain(trial.sub_network) for trial in outcome.result.trials)


def test_a_search_knows_its_images_again(trained, tmp_path) -> None:
    first = start(trained, tmp_path, num_samples=3)
    arrays = [{**row, "pixel_values": row["pixel_values"].numpy()} for row in SELECTION]
    longer = start(trained, tmp_path, arrays, num_samples=5)
    assert longer.result.trials[:3] == first.result.trials and len(longer.result.trials) == 5
    other = [dict(row) for row in SELECTION]
    other[30] = {**other[30], "pixel_values": other[30]["pixel_values"].clone()}
    other[30]["pixel_values"][1, 6, 6] += 0.5
    with pytest.raises(ValueError, match="holds another search"):
        start(trained, tmp_path, other, num_samples=5)


def test_the_full_network_teaches_the_others_in_training(tmp_path) -> None:
    run = make_trainer(tmp_path, "kd", max_steps=3)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert np.isfinite(run.state.log_history[-1]["train_loss"])


def test_standard_nas_trains_models_of_images_one_by_one(tmp_path) -> None:
    def search(run, num_samples: int):
        arguments = SearchArguments(
            do_search=True, nas_type="standard", search_strategy="random_search", num_samples=num_samples
        )
        options = {"selection_dataset": SELECTION, "compute_metrics": accuracy, "output_dir": tmp_path}
        return run_standard_nas(run, arguments, report_datasets={"validation": VALIDATION}, **options)

    settings = {"num_train_epochs": 1, "max_steps": -1}
    first = search(make_trainer(tmp_path, None, **settings), 2)
    again = search(make_trainer(tmp_path, None, **settings), 3)
    assert again.result.trials[:2] == first.result.trials and len(again.result.trials) == 3
    small = AutoModelForImageClassification.from_pretrained(again.chosen_folder).eval()
    images, labels = stack(VALIDATION)
    with torch.no_grad():
        logits = small(pixel_values=images).logits.numpy()
    assert accuracy(EvalPrediction(logits, labels))["accuracy"] == again.metrics["chosen_validation_accuracy"]


def test_what_can_be_measured_of_images_is_known_before_the_training() -> None:
    def check(model, config=None, pruning=None, **settings):
        search = SearchArguments(do_search=pruning is None, **settings)
        nas = NasArguments(search=search, config=config, **({} if pruning is None else {"pruning": pruning}))
        check_arguments(nas, model, metric_name="accuracy")

    everything = ["error", "params", "macs", "latency", "memory"]
    check(zoo.build("vit"), search_objectives=everything, race=True, max_latency_ratio=0.5, max_params_ratio=0.5)
    with pytest.raises(ValueError, match="'eager'.*attn_implementation='sdpa'"):
        check(zoo.build("vit", attention="eager"), search_objectives=["error", "memory"])
    check(zoo.build("vit"), pruning=PruningArguments("heads+neurons", target_sparsity=0.5, pruning_budget="macs"))
    sizes = {tokens: {"input_info": [{"sample_size": [1, tokens]}]} for tokens in (TOKENS, 128)}
    check(zoo.build("vit"), NncfConfig.from_dict(sizes[TOKENS], "a configuration"))
    with pytest.raises(ValueError, match="images of 12 x 12 reads 10 tokens, not 128; give the sequence_length 10"):
        check(zoo.build("vit"), NncfConfig.from_dict(sizes[128], "a configuration"))


def test_heads_are_ranked_on_images_that_are_made_when_they_are_read(tmp_path) -> None:
    """As in scripts for images, with `remove_unused_columns=False`: before, no column is one of the model."""
    given = rows(32, 6)

    def to_pixels(batch: dict) -> dict:
        return {"pixel_values": [given[index]["pixel_values"] for index in batch["index"]], "labels": batch["label"]}

    lazy = datasets.Dataset.from_dict({"index": range(32), "label": [row["labels"] for row in given]})
    model = zoo.without_dropout(zoo.build("vit"))
    orders = []
    for name, train in (("lazy", lazy.with_transform(to_pixels)), ("read", given)):
        run_head_pruning(
            zoo.without_dropout(zoo.build("vit")),
            TrainingArguments(
                str(tmp_path / name), per_device_train_batch_size=16, report_to=[], use_cpu=True, disable_tqdm=True,
                remove_unused_columns=False,
            ),
            heads=HeadPruningArguments(pruning_method="michel", num_of_heads=1),
            sequence_length=TOKENS,
            train_dataset=train,
            eval_dataset=rows(16, 7),
            data_collator=default_data_collator,
            compute_metrics=accuracy,
        )  # fmt: skip
        orders.append(json.loads((tmp_path / name / "pruning" / ORDER_FILE).read_text())["removed"])
    heads = {(row.name, head) for row in describe(model) if row.layout.is_attention for head in range(row.units)}
    assert orders[0] == orders[1] and set(map(tuple, orders[0])) == heads
