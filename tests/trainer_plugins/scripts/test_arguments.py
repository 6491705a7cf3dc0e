"""Flags that there are not and folders that do not exist are refused in a sentence, before transformers sees them."""

import sys

import pytest

from trainer_plugins.scripts.arguments import DataFileArguments, PretrainedArguments, parse_arguments


def parse(monkeypatch, *flags: str) -> tuple:
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    return parse_arguments(PretrainedArguments, DataFileArguments)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--kd_teachr_model", "There is no flag --kd_teachr_model; did you mean --kd_teacher_model?"),
        ("--search_spce=medium", "There is no flag --search_spce; did you mean --search_space?"),
        ("--evaluation_strategy", "since transformers 5 it is called --eval_strategy"),
        ("--overwrite_output_dir", "the same command continues its run"),
        ("--to_onnx", "hf-nas export"),
        ("--qqqqqqqqq", "'--qqqqqqqqq' is no flag"),
        ("stray", "'stray' is no flag and belongs to none"),
    ],
)
def test_flags_that_there_are_not(flag: str, message: str, monkeypatch) -> None:
    with pytest.raises(ValueError, match=message):
        parse(monkeypatch, "--seed", "1", flag)


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--tokenizer_name", "--kd_teacher_model"])
@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "../nowhere", "~/nowhere", "a/b/c"])
def test_folders_that_do_not_exist(flag: str, name: str, monkeypatch) -> None:
    with pytest.raises(ValueError, match=f"{flag} '{name}' does not exist; give a folder"):
        parse(monkeypatch, flag, name)


def test_names_on_the_hub_and_folders_that_exist(monkeypatch, tmp_path) -> None:
    model, data, training, nas = parse(
        monkeypatch, "--model_name_or_path", "bert-base-uncased", "--kd_teacher_model", "someone/teacher",
        "--checkpoint_dir_model", str(tmp_path), "--output_dir", str(tmp_path), "--report_to", "none",
    )  # fmt: skip
    assert model.model_name_or_path == "bert-base-uncased" and data.train_file is None
    assert nas.distillation.kd_teacher_model == "someone/teacher"
    assert nas.search.checkpoint_dir_model == training.output_dir == str(tmp_path)
