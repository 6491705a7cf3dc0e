"""`--push_to_hub` of the example scripts: what arrives is the small model of a search or a pruning, with its card."""

import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, pipeline

from hf_nas.report import check_metadata, handover
from tests.examples.conftest import WORDS, example_modules, reviews, save_tiny_bert, write_csv
from tests.report.runs import read_json
from tests.trainer_plugins.hub_folder import HubFolder


TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
MODEL = {"config.json", "model.safetensors", "sub_network.json", "README.md"}
SEARCH = ("--sampling_strategy", "sandwich", "--do_search", "--num_samples", "5", "--search_strategy", "random_search")
PRUNING = (
    "--pruning_type", "structured_heads+structured_mlp", "--target_sparsity", "0.5", "--reg_learning_rate", "0.1",
    "--prepruning_finetune_epochs", "0", "--lagrangian_warmup_epochs", "0.5",
)  # fmt: skip


@pytest.fixture
def push(tmp_path, monkeypatch):
    """Runs run_glue.py with `--push_to_hub`; gives the folder of the run and the one that was pushed to."""
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    save_tiny_bert(model, WORDS)
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Tiny\n")
    files = {name: write_csv(tmp_path / f"{name}.csv", reviews(40, seed)) for seed, name in enumerate(("a", "b"))}
    hub = HubFolder.install(tmp_path / "hub", monkeypatch)
    for name in ("plot_front", "plot_progress"):
        monkeypatch.setattr(handover, name, lambda _, path: Path(path).write_bytes(b"\x89PNG picture"))

    def run(*flags: str) -> tuple[Path, Path, HubFolder]:
        folder = tmp_path / "out"
        arguments = [
            "--model_name_or_path", str(model), "--train_file", files["a"], "--validation_file", files["b"],
            "--do_train", "--do_eval", "--output_dir", str(folder), "--max_seq_length", "16", "--use_cpu",
            "--per_device_train_batch_size", "8", "--num_train_epochs", "2", "--learning_rate", "1e-3",
            "--push_to_hub", "--hub_model_id", "me/small", "--hub_token", "hf_secret", "--report_to", "none",
            "--cache_dir", str(tmp_path / "cache"), *flags,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["run_glue.py", *arguments])
        with example_modules("text-classification", "run_glue") as modules:
            modules["run_glue"].main()
        return folder, hub.folder / "me" / "small", hub

    return run


def check(folder: Path, pushed: Path, hub: HubFolder) -> ModelCard:
    assert hub.commits[-1]["repo_id"] == "me/small"
    loader = {"modeling_hf_nas.py"} if (pushed / "modeling_hf_nas.py").is_file() else set()
    found = {path.relative_to(pushed).as_posix() for path in pushed.rglob("*") if path.is_file()}
    assert found - {"front.csv", "front.png"} == MODEL | loader | TOKENIZER
    text = (pushed / "README.md").read_text(encoding="utf-8")
    check_metadata(text)
    assert "hf_secret" not in text and str(folder.parent) not in text
    assert "python run_glue.py --model_name_or_path models/tiny" in text and "--hub_token ***" in text
    assert "mit, that of a local copy of `models/tiny` as its authors state it." in text
    assert pipeline("text-classification", model=str(pushed), device="cpu")("good film")[0]["score"] > 0
    return ModelCard(text)


def test_a_search(push) -> None:
    folder, pushed, hub = push(*SEARCH)
    card = check(folder, pushed, hub)
    # Of all that was trained before nothing was pushed.
    assert len(hub.commits) == 1 and (pushed / "front.csv").is_file() and (pushed / "front.png").is_file()
    small = AutoModelForSequenceClassification.from_pretrained(pushed)
    assert small.num_parameters() == read_json(folder / "all_results.json")["chosen_parameters"]
    assert card.data.license == "mit" and card.data.tags[:2] == ["hf_nas", "structured-pruning"]
    assert (folder / "report.html").is_file()


def test_a_pruning(push) -> None:
    folder, pushed, hub = push(*PRUNING)
    card = check(folder, pushed, hub)
    assert "cofi" in card.data.tags
    accuracy = read_json(folder / "eval_results.json")["eval_accuracy"]
    assert f"| accuracy | validation | {accuracy:.4f} |" in card.content
    assert (folder / "report.html").is_file()
