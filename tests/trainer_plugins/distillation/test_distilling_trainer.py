"""A teacher's logits enter the loss with the published weights, whatever the Trainer's settings."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    TrainingArguments,
    default_data_collator,
)

from tests import zoo
from tests.trainer_plugins.worlds import rows
from trainer_plugins import SuperNetworkArguments, SuperNetworkTrainer
from trainer_plugins.arguments import DistillationArguments
from trainer_plugins.distillation.distilling_trainer import DistillingTrainer


def arguments(folder, **settings) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.5, "lr_scheduler_type": "constant",
            "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no", "report_to": [], "use_cpu": True,
            "disable_tqdm": True, "logging_steps": 1, "train_sampling_strategy": "sequential", **settings,
        },
    )  # fmt: skip


def students(**changes):
    model = zoo.without_dropout(zoo.build("bert", **changes))
    return model, copy.deepcopy(model).train(), zoo.build("bert", seed=5, **changes)


def moved(run, model) -> dict[str, torch.Tensor]:
    """What a step of plain gradient descent did, as gradients."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run.train()
    return {name: (before[name] - tensor) / 0.5 for name, tensor in model.state_dict().items()}


def assert_gradients(found: dict, reference: torch.nn.Module) -> None:
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.grad is not None}
    assert wanted
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=2e-5, rtol=1e-3), name


@pytest.mark.parametrize("batch, accumulation", [(8, 1), (2, 4)])
def test_a_step_equals_a_hand_written_one(batch: int, accumulation: int, tmp_path) -> None:
    model, reference, teacher = students()
    run = DistillingTrainer(
        model=model, args=arguments(tmp_path, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation), teacher=teacher, train_dataset=rows(),
        data_collator=default_data_collator,
        distillation=DistillationArguments(kd_temperature=3.0, kd_task_weight=0.25),
    )  # fmt: skip
    found = moved(run, model)
    inputs = default_data_collator(rows()[:8])
    labels = inputs.pop("labels")
    logits = reference(**inputs).logits
    with torch.no_grad():
        target = (teacher(**inputs).logits / 3.0).softmax(-1)
    divergence = (target * (target.log() - (logits / 3.0).log_softmax(-1))).sum(-1).mean()
    loss = 0.25 * functional.cross_entropy(logits, labels) + 0.75 * 9.0 * divergence
    loss.backward()
    assert_gradients(found, reference)
    assert run.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())


def test_regression_learns_the_teachers_values(tmp_path) -> None:
    model, reference, teacher = students(num_labels=1)
    data = [{**row, "labels": float(row["labels"])} for row in rows()]
    run = DistillingTrainer(
        model=model, args=arguments(tmp_path), teacher=teacher, train_dataset=data, data_collator=default_data_collator
    )
    found = moved(run, model)
    inputs = default_data_collator(data[:8])
    labels = inputs.pop("labels")
    logits = reference(**inputs).logits.squeeze(-1)
    with torch.no_grad():
        target = teacher(**inputs).logits.squeeze(-1)
    (0.1 * functional.mse_loss(logits, labels) + 0.9 * functional.mse_loss(logits, target)).backward()
    assert_gradients(found, reference)


def test_question_answering_counts_both_ends_and_no_padding(tmp_path) -> None:
    config = zoo.build("bert", num_labels=2).config
    models = []
    for seed in (0, 0, 5):
        torch.manual_seed(seed)
        models.append(zoo.without_dropout(BertForQuestionAnswering(config)).train())
    model, reference, teacher = models
    data = []
    for number, row in enumerate(rows(8)):
        mask = [1] * (8 - number % 3) + [0] * (number % 3)
        data.append({"input_ids": row["input_ids"], "attention_mask": mask, "start_positions": 1, "end_positions": 3})
    run = DistillingTrainer(
        model=model, args=arguments(tmp_path), teacher=teacher, train_dataset=data, data_collator=default_data_collator
    )
    found = moved(run, model)
    inputs = default_data_collator(data)
    outputs = reference(**inputs)
    with torch.no_grad():
        targets = teacher.eval()(**inputs)
    taught = []
    for name in ("start_logits", "end_logits"):
        for row in range(8):
            length = int(inputs["attention_mask"][row].sum())
            ours = (getattr(outputs, name)[row, :length] / 2).log_softmax(-1)
            theirs = (getattr(targets, name)[row, :length] / 2).softmax(-1)
            taught.append((theirs * (theirs.log() - ours)).sum())
    (0.1 * outputs.loss + 0.9 * 4 * torch.stack(taught).mean()).backward()
    assert_gradients(found, reference)


def test_the_teacher_is_asked_once_a_batch_for_all_sub_networks(tmp_path) -> None:
    model, reference, teacher = students()
    run = SuperNetworkTrainer(
        model=model, args=arguments(tmp_path, max_steps=2), teacher=teacher, train_dataset=rows(),
        super_network=SuperNetworkArguments(sampling_strategy="sandwich", importance="none", num_random_sub_nets=2),
        data_collator=default_data_collator,
    )  # fmt: skip
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(1))
    found = moved(run, model)
    assert len(calls) == 2
    assert any(float(change.abs().max()) > 0 for change in found.values())


def test_labels_in_another_order_are_put_in_ours(tmp_path) -> None:
    model, reference, teacher = students()
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    teacher.config.id2label = {0: "C", 1: "A", 2: "B"}  # as published models of MNLI have them
    run = DistillingTrainer(model=model, args=arguments(tmp_path), teacher=teacher, train_dataset=rows())
    inputs = default_data_collator(rows()[:4])
    with run.taught(inputs), torch.no_grad():
        theirs = teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        assert torch.equal(run._teacher_logits[0], theirs[:, [1, 2, 0]])


@pytest.mark.parametrize("unnamed", ["teacher", "model"])
def test_labels_without_names_are_taken_as_they_are_with_a_warning(unnamed: str, tmp_path, caplog) -> None:
    model, _, teacher = students()
    named = model if unnamed == "teacher" else teacher
    named.config.id2label = {0: "contradiction", 1: "neutral", 2: "entailment"}
    run = DistillingTrainer(model=model, args=arguments(tmp_path), teacher=teacher, train_dataset=rows())
    assert f"The labels of the {unnamed} have no names" in caplog.text and "neutral, entailment" in caplog.text
    inputs = default_data_collator(rows()[:4])
    with run.taught(inputs), torch.no_grad():
        theirs = teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        assert torch.equal(run._teacher_logits[0], theirs)


def test_a_teacher_of_other_labels_is_refused(tmp_path) -> None:
    model, _, teacher = students()
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    teacher.config.id2label = {0: "x", 1: "b", 2: "c"}
    with pytest.raises(ValueError, match="labels are x, b, c and those of the task a, b, c; give .* id2label"):
        DistillingTrainer(model=model, args=arguments(tmp_path), teacher=teacher)


def test_predictions_are_in_the_order_of_the_rows(tmp_path) -> None:
    data = [{**row, "input_ids": row["input_ids"][: 3 + n % 5]} for n, row in enumerate(rows())]
    for row in data:
        row["attention_mask"] = [1] * len(row["input_ids"])
    found = []
    for strategy in ("random", "group_by_length"):
        run = DistillingTrainer(
            model=zoo.without_dropout(zoo.build("bert")), data_collator=pad,
            args=arguments(tmp_path, train_sampling_strategy=strategy, per_device_eval_batch_size=4),
        )  # fmt: skip
        found.append(run.predict(data))
    assert found[0].label_ids.tolist() == found[1].label_ids.tolist() == [row["labels"] for row in data]
    assert abs(found[0].predictions - found[1].predictions).max() < 1e-5


def test_all_rows_are_evaluated_where_the_training_drops_the_last_ones(tmp_path) -> None:
    data = rows()[:11]
    run = DistillingTrainer(
        model=zoo.without_dropout(zoo.build("bert")), train_dataset=data, eval_dataset=data,
        data_collator=default_data_collator,
        args=arguments(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=4),
    )  # fmt: skip
    assert run.predict(data).label_ids.tolist() == [row["labels"] for row in data]
    assert sum(len(batch["labels"]) for batch in run.get_eval_dataloader()) == 11
    assert sum(len(batch["labels"]) for batch in run.get_train_dataloader()) < 11


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_evaluation_in_half_precision_leaves_the_weights_as_they_are(name: str, tmp_path) -> None:
    model = zoo.without_dropout(zoo.build(name))
    data = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows()[:8]]
    before = {key: tensor.clone() for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    exact, half = (
        DistillingTrainer(
            model=model, args=arguments(tmp_path, bf16_full_eval=is_half), data_collator=default_data_collator
        )
        for is_half in (False, True)
    )
    found = [run.predict(data).predictions for run in (exact, half, exact)]
    assert 0 < abs(found[0] - found[1]).max() < 0.1 and (found[0] == found[2]).all()
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.dtype == before[key].dtype and torch.equal(tensor, before[key]), key


def pad(batch: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)
    filled = [
        {**row, **{name: row[name] + [0] * (longest - len(row[name])) for name in ("input_ids", "attention_mask")}}
        for row in batch
    ]
    return default_data_collator(filled)


def test_a_model_of_images_is_taught(tmp_path) -> None:
    model, teacher = zoo.build("vit"), zoo.build("vit", seed=5)
    size = model.config.image_size
    data = [{"pixel_values": torch.randn(model.config.num_channels, size, size), "labels": 1} for _ in range(8)]
    run = DistillingTrainer(
        model=model, args=arguments(tmp_path), teacher=teacher, train_dataset=data, data_collator=default_data_collator
    )
    assert run.train().training_loss > 0


@pytest.mark.parametrize(
    "changes, message",
    [({"vocab_size": 60}, "reads 60 different tokens and the model 50"), ({"num_labels": 5}, "knows 5 labels .* 3;")],
)
def test_a_teacher_of_something_else_is_refused(changes: dict, message: str, tmp_path) -> None:
    config = zoo.build("bert").config
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        DistillingTrainer(
            model=zoo.build("bert"), args=arguments(tmp_path), teacher=BertForSequenceClassification(config)
        )
