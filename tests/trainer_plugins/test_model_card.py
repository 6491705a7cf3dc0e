"""`push_to_hub` of a run pushes its small model and nothing else; its card says what was measured."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.trainer_utils import HubStrategy

from hf_nas.extraction import extract, save_extracted
from hf_nas.files import write_json
from hf_nas.report import RunFolder, check_metadata, handover
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.report.runs import make_pruning, read_json
from tests.trainer_plugins.hub_folder import HubFolder
from tests.trainer_plugins.search_world import accuracy
from tests.trainer_plugins.worlds import rows, trainer
from trainer_plugins import PruningTrainer, SearchArguments, run_search
from trainer_plugins.model_card import command_line, files_to_push


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), pad_token="[PAD]", unk_token="[UNK]"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch) -> HubFolder:
    return HubFolder.install(tmp_path / "hub", monkeypatch)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Pictures take seconds."""
    for name in ("plot_front", "plot_progress"):
        monkeypatch.setattr(handover, name, lambda _, path: Path(path).write_bytes(b"\x89PNG picture"))


def searched(folder: Path, output_dir: Path | None = None, **settings):
    """A super-network that was trained for some steps and searched."""
    run = trainer(str(folder), **settings)
    run.processing_class = tokenizer()
    run.train()
    outcome = run_search(
        run,
        SearchArguments(do_search=True, num_samples=6, search_strategy="random_search", max_params_ratio=0.7),
        selection_dataset=rows()[:32],
        compute_metrics=accuracy,
        report_datasets={"validation": rows()[32:]},
        output_dir=output_dir or folder,
    )
    return run, outcome


def test_a_search_pushes_its_small_model(tmp_path, hub, quick, monkeypatch) -> None:
    script = ["/home/me/run_glue.py", "--task_name", "mrpc", "--hub_token", "hf_secret", "--data_dir", "/home/me/mrpc"]
    monkeypatch.setattr(sys, "argv", script)
    folder = tmp_path / "my-run"
    run, outcome = searched(
        folder, save_strategy="steps", save_steps=3, push_to_hub=True, hub_model_id="me/small", hub_token="hf_secret"
    )
    run.save_model()
    # Nothing is pushed of the super-network, neither in the training nor by saving it.
    assert hub.commits == [] and (folder / "model.safetensors").is_file() and (folder / "checkpoint-3").is_dir()
    answer = run.push_to_hub(dataset="MRPC", dataset_tags="nyu-mll/glue", dataset_args="mrpc", tags="mine")
    assert answer.commit_url == "folder:me/small"
    (commit,) = hub.commits
    assert commit["token"] == "hf_secret" and commit["repo_id"] == "me/small"
    model_files = {"config.json", "model.safetensors", "sub_network.json", "README.md", "front.csv", "front.png"}
    loader = {"modeling_hf_nas.py"} if (folder / "extracted" / "modeling_hf_nas.py").is_file() else set()
    pushed = hub.folder / "me" / "small"
    found = {path.relative_to(pushed).as_posix() for path in pushed.rglob("*") if path.is_file()}
    assert found == model_files | loader | {"tokenizer.json", "tokenizer_config.json"} == set(commit["files"])
    # It is the chosen model, and loads as it lies there.
    small = AutoModelForSequenceClassification.from_pretrained(pushed).eval()
    assert sum(p.numel() for p in small.parameters()) == outcome.metrics["chosen_parameters"]
    chosen = outcome.result.trials[outcome.chosen].sub_network
    assert SubNetwork.load(pushed) == chosen
    ids = torch.tensor([row["input_ids"] for row in rows()[:4]])
    with torch.no_grad():
        assert torch.equal(small(ids).logits, AutoModelForSequenceClassification.from_pretrained(
            outcome.chosen_folder).eval()(ids).logits)  # fmt: skip
    text = (pushed / "README.md").read_text(encoding="utf-8")
    check_metadata(text)
    assert "python run_glue.py --task_name mrpc --hub_token *** --data_dir me/mrpc" in text
    assert "hf_secret" not in text and "/home" not in text and str(tmp_path) not in text
    data = ModelCard(text).data.to_dict()
    assert data["datasets"] == ["nyu-mll/glue"] and "mine" in data["tags"] and data["license"] == "unknown"
    values = {
        each["dataset"]["split"]: each["metrics"][0]["value"] for each in data["model-index"][0]["results"]
    }  # fmt: skip
    assert values["validation"] == outcome.metrics["chosen_validation_accuracy"]
    profile = RunFolder.read(folder).profile
    assert [each["latency"]["median"] > 0 for each in profile["models"]] == [True, True]
    assert f"**{profile['models'][1]['speed_up']:.2f}x**" in text
    # The card beside the super-network is still the one of Trainer.
    assert "generated_from_trainer" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_search_in_another_folder(tmp_path, hub, quick) -> None:
    run, outcome = searched(tmp_path / "trained", tmp_path / "found" / "my-search")
    future = run.push_to_hub(blocking=False, revision="small", private=True, measure_latency=False, commit_message="m")
    assert future.result().commit_url == "folder:me/trained"
    (commit,) = hub.commits
    assert (commit["revision"], commit["commit_message"]) == ("small", "m") and hub.created[-1]["private"]
    # There is no other model that a card of Trainer could be about.
    assert not (tmp_path / "trained" / "README.md").exists()
    assert (outcome.chosen_folder / "README.md").is_file() and not (tmp_path / "trained" / "extracted").exists()
    assert RunFolder.read(tmp_path / "found" / "my-search").profile["machine"] is None
    # Measured when it is asked for.
    run.create_model_card()
    assert RunFolder.read(tmp_path / "found" / "my-search").profile["machine"] is not None


def test_before_a_search_everything_is_as_with_trainer(tmp_path, hub) -> None:
    run = trainer(str(tmp_path / "plain"))
    run.train()
    run.push_to_hub(measure_latency=True)
    assert "model.safetensors" in hub.commits[0]["files"] and "config.json" in hub.commits[0]["files"]
    assert not (tmp_path / "plain" / "report.html").exists()
    unsearched = trainer(str(tmp_path / "standard"), None, push_to_hub=True)
    unsearched.save_model()
    assert [commit["commit_message"] for commit in hub.commits[1:]] == ["Model save"]


@pytest.mark.parametrize("strategy, pushes", [(HubStrategy.EVERY_SAVE, False), (HubStrategy.CHECKPOINT, True)])
def test_pushes_while_a_super_network_is_trained(strategy, pushes: bool, tmp_path, hub) -> None:
    run = trainer(
        str(tmp_path / "run"),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        push_to_hub=True,
        hub_strategy=strategy,
    )
    run.train()
    assert bool(hub.commits) is pushes


def pruned_trainer(folder: Path, **options) -> PruningTrainer:
    arguments = trainer(str(folder)).args
    return PruningTrainer(args=arguments, train_dataset=rows(), processing_class=tokenizer(), **options)


def test_a_pruning_pushes_its_small_model(tmp_path, hub) -> None:
    folder = make_pruning(tmp_path / "pruned-run")
    sub_network = SubNetwork.load(folder / "finetuned")
    small = AutoModelForSequenceClassification.from_pretrained(folder / "finetuned")
    # As the scripts do: the trainer of the outcome works in the folder of the run, the card goes beside the model.
    run = pruned_trainer(folder, model=small, sub_network=sub_network)
    run.push_to_hub()
    files = {
        "README.md", "config.json", "model.safetensors", "modeling_hf_nas.py", "sub_network.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert set(hub.commits[0]["files"]) == files
    # That of heads by importance, which has no search.
    (folder / "front.csv").write_text("heads,parameters\n")
    files.add("front.csv")
    run.args.output_dir = str(folder / "finetuned")
    run.push_to_hub()
    assert set(hub.commits[1]["files"]) == files and (folder / "profile.json").is_file()
    assert not (folder / "finetuned" / "profile.json").exists() and not (folder / "README.md").exists()
    text = (folder / "finetuned" / "README.md").read_text(encoding="utf-8")
    assert "`front.csv`" in text and "CoFi" in text and "| f1 | validation | 0.7500 |" in text


def test_a_small_model_that_was_trained_on_is_saved_first(tmp_path, hub) -> None:
    model = zoo.build("bert")
    sub_network = zoo.corner_cases(model)["everything at once"]
    run = pruned_trainer(tmp_path / "alone", model=extract(model, sub_network), sub_network=sub_network)
    run.push_to_hub(measure_latency=False)
    pushed = hub.folder / "me" / "alone"
    assert SubNetwork.load(pushed) == sub_network and (pushed / "modeling_hf_nas.py").is_file()
    with torch.no_grad():
        run.model.classifier.bias.fill_(3.0)
    run.push_to_hub(measure_latency=False)
    again = AutoModelForSequenceClassification.from_pretrained(pushed)
    assert again.classifier.bias[0].item() == 3.0


def test_a_dense_model_that_cannot_be_built_is_said(tmp_path, hub, caplog) -> None:
    folder = make_pruning(tmp_path / "run")
    data = read_json(folder / "finetuned" / "sub_network.json")
    data["units"]["encoder.0.attention"] = 5
    write_json(folder / "finetuned" / "sub_network.json", data)
    small = AutoModelForSequenceClassification.from_pretrained(folder / "finetuned")
    pruned_trainer(folder, model=small, sub_network=SubNetwork.load(folder / "finetuned")).create_model_card()
    assert "The card is without sizes and speed" in caplog.text
    assert "## Size and speed" not in (folder / "finetuned" / "README.md").read_text(encoding="utf-8")


def test_sharded_weights(tmp_path) -> None:
    model = zoo.build("bert")
    sub_network = SubNetwork.full(zoo.describe(model))
    folder = tmp_path / "run" / "extracted"
    save_extracted(extract(model, sub_network), sub_network, folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    write_json(folder / "model.safetensors.index.json", index)
    run = RunFolder(tmp_path / "run", small=folder)
    with pytest.raises(ValueError, match="There is no model-00001-of-00002.safetensors"):
        list(files_to_push(run))
    for name in index["weight_map"].values():
        (folder / name).write_bytes(b"x")
    names = {name for name, _ in files_to_push(run)}
    assert names == {"config.json", "sub_network.json", "model.safetensors.index.json", *index["weight_map"].values()}
    # What lies outside of the folder is no part of the model.
    index["weight_map"]["c"] = "../../secret.safetensors"
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(ValueError, match="There is no secret.safetensors"):
        list(files_to_push(run))
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "argv, processes, expected",
    [
        (["run.py", "--a", "b c"], 1, "python run.py --a 'b c'"),
        (["x/run.py", "--token=abc", "--hub_token", "abc", "-x=/home/me/x/y"], 1,
         "python run.py --token=*** --hub_token *** -x=x/y"),
        (["run.py", "--wandb_api_key", "k", "/etc/data/set"], 2, "torchrun --nproc_per_node 2 run.py --wandb_api_key "
         "*** data/set"),
        (["/lib/ipykernel_launcher.py", "-f", "x"], 1, None),
        (["-c"], 1, None),
        ([], 1, None),
    ],
)  # fmt: skip
def test_the_command(argv: list[str], processes: int, expected: str | None) -> None:
    assert command_line(argv, processes) == expected
