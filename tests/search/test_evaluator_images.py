"""Sub-networks of a model of images, measured as those of texts are, against plain and masked forward passes."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator

from hf_nas.elastic import SuperNetwork
from hf_nas.gates import Gates, binary_gates
from hf_nas.search import SuperNetworkEvaluator
from hf_nas.search.evaluation import Rejected
from hf_nas.search.result import Evaluated
from tests import zoo


def make_rows(model, count: int = 23) -> list[dict]:
    """Images with labels, and with columns that no model takes."""
    images = zoo.inputs_for(model, count)["pixel_values"]
    return [
        {"pixel_values": image, "labels": place * 7 % 3, "file": f"{place}.png"} for place, image in enumerate(images)
    ]


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def super_network():
    return SuperNetwork(zoo.build("vit"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_metrics_are_those_of_the_masked_model_in_the_order_of_the_data_set(attention):
    super_network, seen = SuperNetwork(zoo.build("vit", attention)), []
    plain, rows = zoo.build("vit", attention), make_rows(super_network.model)

    def compute_metrics(prediction):
        seen.append(prediction)
        return accuracy(prediction)

    evaluate = SuperNetworkEvaluator(super_network, rows, default_data_collator, compute_metrics, batch_size=4)
    labels = np.array([row["labels"] for row in rows])
    images = torch.stack([row["pixel_values"] for row in rows])
    for sub_network in zoo.corner_cases(plain).values():
        metrics = evaluate(sub_network)
        with Gates(plain, binary_gates(super_network.structure, sub_network)), torch.no_grad():
            masked = plain(pixel_values=images).logits.numpy()
        np.testing.assert_allclose(seen[-1].predictions, masked, atol=1e-5)
        np.testing.assert_array_equal(seen[-1].label_ids, labels)
        assert metrics == {"accuracy": (masked.argmax(-1) == labels).mean()}
    assert np.abs(seen[0].predictions - seen[1].predictions).max() > 1e-3


def test_images_stay_in_order_and_are_held_once(super_network):
    rows = make_rows(super_network.model, 10)
    evaluate = SuperNetworkEvaluator(super_network, rows, default_data_collator, accuracy, batch_size=4)
    ((*batches,),) = evaluate._batches_of(1)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(set(batch.inputs) == {"pixel_values"} for batch in batches)
    assert not evaluate._rows


def test_rows_may_be_lists_arrays_or_a_data_set_that_reads_its_images_when_asked(super_network):
    rows, predictions = make_rows(super_network.model, 6), []
    lists = Dataset.from_list([{**row, "pixel_values": row["pixel_values"].tolist()} for row in rows])
    arrays = [{**row, "pixel_values": row["pixel_values"].numpy()} for row in rows]
    files = Dataset.from_dict({"file": [row["file"] for row in rows], "label": [row["labels"] for row in rows]})
    reads = []

    def read(batch: dict) -> dict:
        reads.extend(batch["file"])
        images = [rows[int(name.partition(".")[0])]["pixel_values"] for name in batch["file"]]
        return {"pixel_values": images, "label": batch["label"]}

    for each in (rows, lists, arrays, files.with_transform(read)):
        evaluate = SuperNetworkEvaluator(
            super_network, each, default_data_collator, lambda p: predictions.append(p) or accuracy(p), batch_size=4
        )
        evaluate(super_network.full)
    for prediction in predictions[1:]:
        np.testing.assert_array_equal(prediction.predictions, predictions[0].predictions)
        np.testing.assert_array_equal(prediction.label_ids, predictions[0].label_ids)
    assert reads == [row["file"] for row in rows]


def test_smaller_sub_networks_get_larger_batches_and_the_same_predictions_up_to_rounding():
    super_network = SuperNetwork(zoo.build("vit", intermediate_size=256))
    rows, sizes, predictions = make_rows(super_network.model), [], []

    def take(outputs):
        sizes.append(len(outputs.logits))
        return outputs.logits

    def keep(prediction):
        predictions.append(prediction.predictions)
        return accuracy(prediction)

    options = {"batch_size": 4, "predictions": take}
    grown, plain = (
        SuperNetworkEvaluator(super_network, rows, default_data_collator, keep, grow_batches=grow, **options)
        for grow in (True, False)
    )
    cases = zoo.corner_cases(super_network.model)
    for name in ("full", "all layers gone", "full", "one neuron left", "all attention gone"):
        assert plain(cases[name]) and sizes == [4] * 5 + [3]
        sizes.clear()
        assert grown(cases[name]) and sum(sizes) == 23
        assert max(sizes) == {"all layers gone": 12}.get(name, 4)
        sizes.clear()
        np.testing.assert_allclose(predictions[-1], predictions[-2], atol=1e-5)


def test_races_give_up_the_worse_and_measure_the_others_as_without(super_network):
    model = super_network.model
    rows = make_rows(model, 120)
    images = torch.stack([row["pixel_values"] for row in rows])
    with torch.no_grad():  # so that classes are told apart
        model.classifier.bias.sub_(model(pixel_values=images).logits.mean(0))
        predicted = model(pixel_values=images).logits.argmax(-1).tolist()
    rows = [{**row, "labels": label} for row, label in zip(rows, predicted)]
    assert min(np.bincount(predicted)) > 15
    options = (super_network, rows, default_data_collator, accuracy)
    raced, plain = SuperNetworkEvaluator(*options, racing=True), SuperNetworkEvaluator(*options)
    assert plain(super_network.full) == {"accuracy": 1.0}
    rival = Evaluated(super_network.full, (), {"accuracy": 0.9}, (0.1, 0.1))
    outcomes = [raced.race(each, (0.5,), [rival]) for each in zoo.corner_cases(model).values()]
    rejected = 0
    for sub_network, outcome in zip(zoo.corner_cases(model).values(), outcomes):
        metrics = plain(sub_network)
        if isinstance(outcome, Rejected):
            rejected += 1
            assert metrics["accuracy"] <= 0.9 and outcome.examples in (15, 30, 60)
        else:
            assert outcome == metrics
    assert outcomes[0] == {"accuracy": 1.0} and rejected >= 5


def test_data_sets_without_images_are_refused(super_network):
    rows = [{"file": "a.png", "label": 0}]
    with pytest.raises(ValueError, match="no 'pixel_values'; pass its images through the image processor first"):
        SuperNetworkEvaluator(super_network, rows, default_data_collator, accuracy)
