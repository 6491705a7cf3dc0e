"""What settings of Trainer, and of the model, mean for a pruning of heads and for the fine-tuning after it."""

import json

import torch

from tests.trainer_plugins.head_pruning.test_run import DSP, VOITA, bert, prune, same, weights
from tests.trainer_plugins.pruning_world import EPOCH


def test_a_limit_of_steps_is_for_the_pruning_and_not_for_the_fine_tuning_after_it(tmp_path) -> None:
    prune(tmp_path, {**DSP, "joint_pruning": True}, final={"do_final_finetune": True}, max_steps=2)
    steps = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("pruning", "finetuned")]
    assert [state["global_step"] for state in steps] == [2, EPOCH]


def test_a_checkpoint_that_is_named_is_one_of_the_pruning(tmp_path) -> None:
    heads, final = {**DSP, "joint_pruning": True}, {"do_final_finetune": True}
    saving = {"save_strategy": "steps", "save_steps": 2}
    prune(tmp_path / "whole", heads, final=final, **saving)
    checkpoint = str(tmp_path / "whole" / "pruning" / "checkpoint-4")
    prune(tmp_path / "resumed", heads, final=final, resume_from_checkpoint=checkpoint, **saving)
    for name in ("pruned", "finetuned"):
        assert same(weights(tmp_path / "resumed" / name), weights(tmp_path / "whole" / name))


def test_voita_says_that_no_evaluation_was_chosen_by(tmp_path, caplog) -> None:
    choosing = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
                "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}  # fmt: skip
    report = prune(
        tmp_path, {**VOITA, "num_of_heads": 1, "pruning_lr": 1e-4, "joint_pruning": True}, **choosing
    ).report
    assert report["checkpoint"] == "last" and "No evaluation was chosen by" in caplog.text
    caplog.clear()
    report = prune(tmp_path / "dsp", {**DSP, "joint_pruning": True}, **choosing).report
    assert report["checkpoint"].startswith("checkpoint-") and "No evaluation was chosen by" not in caplog.text


def test_what_is_frozen_stays_frozen(tmp_path) -> None:
    model = bert()
    frozen = model.base_model.embeddings.word_embeddings.weight.requires_grad_(False)
    before, others = frozen.clone(), model.base_model.embeddings.position_embeddings.weight.clone()
    outcome = prune(tmp_path, {**DSP, "joint_pruning": True}, model)
    embeddings = outcome.trainer.model.base_model.embeddings
    assert torch.equal(embeddings.word_embeddings.weight, before)
    assert not torch.equal(embeddings.position_embeddings.weight, others)
