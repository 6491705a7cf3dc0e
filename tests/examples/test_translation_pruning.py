"""Encoder-decoders pruned by the translation script: from the flags to a small model that translates."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Trainer

from hf_nas import SubNetwork, describe
from hf_nas.gates import Gates, binary_gates, head_rows, kind_of_row
from hf_nas.profiling import SizeTable
from hf_nas.subnetwork import kept_ids
from tests import zoo
from tests.examples.runs import counted_steps, read, weights
from tests.examples.translations import NEW, bleu, pairs, translate_with
from trainer_plugins import TranslationPruningTrainer
from trainer_plugins.head_pruning import front as head_front
from trainer_plugins.head_pruning import run as head_pruning


KINDS = ["encoder self-attention", "cross-attention", "decoder self-attention"]
T5 = NEW | {"model_type": "t5", "config_overrides": "d_model=32,d_kv=8,d_ff=24,num_layers=2,num_heads=4"}
BLEU = ("--do_eval", "--predict_with_generate", "--num_beams", "2")
DSP = ("--do_train", "--pruning_method", "dsp", "--annealing")
BY_KIND = ("--num_of_heads_encoder_self", "6", "--num_of_heads_cross", "5", "--num_of_heads_decoder_self", "7")


def heads_by_kind(folder: Path, dense: Path) -> dict[str, int]:
    """Counted by hand from the sub-network beside a model."""
    structure = describe(AutoModelForSeq2SeqLM.from_pretrained(dense))
    sub_network, counts = SubNetwork.load(folder), {}
    for row in head_rows(structure):
        counts[kind_of_row(row)] = counts.get(kind_of_row(row), 0) + len(kept_ids(sub_network[row.name]))
    return counts


def generate(model, pair_files: dict[str, str], tokenizer, **options) -> torch.Tensor:
    """Beam search over the validation set, of a fixed length, so that no early end hides a difference."""
    inputs = tokenizer([row["en"] for row in pairs(pair_files["validation_file"])], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    options = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **options}
    return model.eval().generate(**inputs, **options)


def check_translates(folder: Path, pair_files: dict[str, str], results: dict) -> None:
    """The small model translates as the results say, for anybody who loads it."""
    rows = pairs(pair_files["validation_file"])
    translations = translate_with(folder, [row["en"] for row in rows], num_beams=2, max_length=20)
    assert results["eval_bleu"] == pytest.approx(bleu(translations, rows))


def test_gates_alone_with_numbers_by_kind(translate, translator, pair_files, tmp_path, capsys) -> None:
    translate(
        tmp_path, *DSP, *BY_KIND, *BLEU, "--initial_temperature", "1", model_name_or_path=translator, max_steps=20
    )
    pruned, results = tmp_path / "pruned", read(tmp_path)
    report = read(pruned, "pruning.json")
    assert list(report["heads_by_kind"]) == KINDS
    assert [counts["kept"] for counts in report["heads_by_kind"].values()] == [6, 5, 7]
    assert (report["heads"], report["dense_heads"]) == (18, 24)
    by_kind = "encoder self-attention 6 of 8, cross-attention 5 of 8, decoder self-attention 7 of 8"
    assert f"18 of 24 heads are left (--pruning_method dsp): {by_kind}." in capsys.readouterr().out
    assert list(heads_by_kind(pruned, translator).values()) == [6, 5, 7]
    small = AutoModelForSeq2SeqLM.from_pretrained(pruned)
    assert small.num_parameters() == report["parameters"] < report["dense_parameters"]
    check_translates(pruned, pair_files, results)
    # No weight was trained, so that gates on the model from before, and zeros in a full-size copy, compute the same.
    dense, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(translator), AutoTokenizer.from_pretrained(translator)
    sub_network = SubNetwork.load(pruned)
    wanted = generate(zoo.dense_oracle(dense, sub_network), pair_files, tokenizer, use_cache=False)
    with Gates(dense, binary_gates(describe(dense), sub_network)):
        assert torch.equal(generate(dense, pair_files, tokenizer, use_cache=True), wanted)
    for use_cache in (True, False):
        assert torch.equal(generate(small, pair_files, tokenizer, use_cache=use_cache), wanted)
    assert not torch.equal(generate(dense, pair_files, tokenizer), wanted)


def test_weights_and_gates_together_from_scratch(translate, pair_files, tmp_path, monkeypatch) -> None:
    """A new T5, whose layers share their position bias by heads; then fine-tuned."""
    dense = []
    monkeypatch.setattr(
        head_pruning, "_write",
        lambda run, model, *args, write=head_pruning._write: dense.append(model) or write(run, model, *args),
    )  # fmt: skip
    flags = (*DSP, "--joint_pruning", "--num_of_heads", "7", "--initial_temperature", "0.1", "--train_tokenizer")
    final = ("--do_final_finetune", "--final_finetune_epochs", "1")
    translate(tmp_path, *flags, *final, *BLEU, **T5, label_smoothing_factor=0.1)
    pruned, finetuned = tmp_path / "pruned", tmp_path / "finetuned"
    report = read(pruned, "pruning.json")
    assert report["heads"] == 7 == sum(heads_by_kind(pruned, tmp_path / "initial").values())
    small, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(pruned), AutoTokenizer.from_pretrained(pruned)
    with Gates(dense[0], binary_gates(describe(dense[0]), SubNetwork.load(pruned))):
        wanted = generate(dense[0], pair_files, tokenizer, use_cache=True)
    assert torch.equal(generate(small, pair_files, tokenizer, use_cache=True), wanted)
    before, after = weights(pruned), weights(finetuned)
    assert before.keys() == after.keys() and not torch.equal(before["shared.weight"], after["shared.weight"])
    check_translates(pruned, pair_files, read(pruned, "eval_results.json"))
    check_translates(finetuned, pair_files, read(tmp_path))
    # Once more, and nothing is trained.
    monkeypatch.setattr(Trainer, "train", None)
    translate(tmp_path, *flags, *final, *BLEU, **T5, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="holds another run .*num_of_heads was 7 and is 8"):
        translate(tmp_path, *flags, *final, *BLEU, "--num_of_heads", "8", **T5, label_smoothing_factor=0.1)


def test_all_sizes_by_importance(translate, translator, pair_files, tmp_path) -> None:
    flags = ("--pruning_method", "michel", "--num_of_heads", "20", "--heads_per_step", "8")
    translate(tmp_path, *flags, *BLEU, model_name_or_path=translator)
    points = read(tmp_path, "front.json")["points"]
    assert [point["heads"] for point in points] == [24, 20, 16, 8, 0]
    assert points[0]["eval_bleu"] == pytest.approx(read(translator)["eval_bleu"])
    assert points[1]["eval_bleu"] == pytest.approx(read(tmp_path)["eval_bleu"])
    check_translates(tmp_path / "pruned", pair_files, read(tmp_path))
    # Measured in another way: again, and the order is that from before.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_front, "michel_order", None)
        translate(tmp_path, *flags, *BLEU[:2], model_name_or_path=translator, max_eval_samples=9)
    again = read(tmp_path, "front.json")
    assert (again["evaluation"]["rows"], again["evaluation"]["generation_num_beams"]) == (9, None)
    assert again["points"][1]["eval_bleu"] == pytest.approx(read(tmp_path)["eval_bleu"])
    # By kind, those that this order removes last.
    translate(tmp_path / "kinds", *flags[:2], *BY_KIND, *flags[4:], model_name_or_path=translator)
    assert [point["heads"] for point in read(tmp_path / "kinds", "front.json")["points"]] == [24, 16, 8, 0]
    assert list(heads_by_kind(tmp_path / "kinds" / "pruned", translator).values()) == [6, 5, 7]


def test_heads_and_neurons_by_operations(translate, translator, pair_files, tmp_path, capsys) -> None:
    flags = (*DSP, "--gate_neurons", "--target_sparsity", "0.3", "--pruning_budget", "macs", "--joint_pruning")
    translate(tmp_path, *flags, *BLEU, model_name_or_path=translator, max_target_length=12, val_max_target_length=20)
    report = read(tmp_path / "pruned", "pruning.json")
    assert 0.3 <= report["sparsity"] < 0.35 and report["budget"] == "macs" and report["target"] == 0.3
    assert report["neurons"] < report["dense_neurons"] == 96 or report["heads"] < 24
    # What is read is cut at 20 tokens, and what is written at 12.
    table = SizeTable(AutoModelForSeq2SeqLM.from_pretrained(translator))
    assert report["dense_macs"] == table.macs(SubNetwork.full(table.structure), 20, 12)
    text = f"{report['neurons']} of 96 neurons. Sparsity {report['sparsity']:.4f} in macs (target 0.3)."
    assert text in capsys.readouterr().out
    check_translates(tmp_path / "pruned", pair_files, read(tmp_path))


def test_cofi(translate, translator, pair_files, tmp_path) -> None:
    flags = ("--do_train", "--pruning_type", "heads+neurons", "--target_sparsity", "0.3", "--do_final_finetune")
    epochs = {"prepruning_finetune_epochs": 0, "lagrangian_warmup_epochs": 0.1, "final_finetune_epochs": 0.2}
    settings = {"model_name_or_path": translator, "kd_teacher_model": translator, "reg_learning_rate": 0.1, **epochs}
    translate(tmp_path, *flags, "--do_distill", *BLEU, **settings, lr_scheduler_type="linear", max_steps=None,
          num_train_epochs=1)  # fmt: skip
    assert read(tmp_path / "pruned", "pruning.json")["sparsity"] >= 0.3
    check_translates(tmp_path / "finetuned", pair_files, read(tmp_path))
    with pytest.raises(ValueError, match="hidden"):
        translate(tmp_path / "hidden", *flags, "--pruning_type", "hidden", **settings)


def test_killed_and_continued(translate, translator, tmp_path) -> None:
    flags = (*DSP, *BY_KIND, "--joint_pruning", "--gate_neurons", "False")
    with pytest.raises(KeyboardInterrupt), counted_steps(TranslationPruningTrainer, killed_at=6):
        translate(tmp_path / "killed", *flags, model_name_or_path=translator)
    translate(tmp_path / "killed", *flags, model_name_or_path=translator)
    translate(tmp_path / "whole", *flags, model_name_or_path=translator)
    gates = [weights(tmp_path / name / "pruning" / "checkpoint-8") for name in ("killed", "whole")]
    assert gates[0]["unit_gates.w"].shape == (24,) and int(gates[0]["unit_gates.steps"]) == 8
    for key, tensor in gates[1].items():
        torch.testing.assert_close(gates[0][key], tensor, rtol=0, atol=1e-6)
    found = [read(tmp_path / name / "pruned", "sub_network.json") for name in ("killed", "whole")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ((*DSP, "--num_of_heads", "7", "--train_tokenizer"), NEW, "those of a new model are random; add --joint_prun"),
        ((*DSP, "--num_of_heads", "25"), {}, "25 heads .* the model has 24; give a whole number from 1"),
        ((*DSP, "--num_of_heads_cross", "9"), {}, "9 heads of decoder.cross_attention .* has 8; give .* from 0 to 8"),
        ((*DSP, "--num_of_heads", "9", "--num_of_heads_cross", "3"), {}, "and --num_of_heads_cross for one kind"),
        ((*DSP, *BY_KIND, "--target_sparsity", "0.5"), {}, "and --num_of_heads_encoder_self are two budgets"),
        ((*DSP, "--target_sparsity", "0.99"), {}, "0.99 would leave none of the heads: with one left .* ask for less"),
        ((*DSP, "--num_of_heads", "7", "--do_search"), {}, "dsp and --do_search are two ways to shrink a model"),
        (
            ("--do_train", "--train_tokenizer", "--pruning_type", "heads", "--target_sparsity", "0.2"),
            NEW | {"prepruning_finetune_epochs": 0, "lagrangian_warmup_epochs": 0},
            "trains no embeddings by default, but those of a new model are random; add --freeze_embeddings False",
        ),
        (("--do_train", "--pretrained_pruned_model", "nowhere"), {}, "'nowhere' is no folder of a pruned model"),
    ],
)
def test_refused_before_training(
    translate, run_translation, translator, tmp_path, monkeypatch, flags, changes, message
):
    monkeypatch.setattr(run_translation, "encode", None)  # what is refused is refused before this is called
    changes = changes or {"model_name_or_path": translator}
    with pytest.raises(ValueError, match=message):
        translate(tmp_path / "out", *flags, **changes)
    assert not (tmp_path / "out" / "run.json").exists()
