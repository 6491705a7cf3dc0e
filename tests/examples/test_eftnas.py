"""The steps of EFTNAS from flags to files: importance, space, teacher, stages, search, extraction; killed at each."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_nas import SubNetwork, describe
from hf_nas.importance import OrderRecord
from hf_nas.importance.movement import MovementScores
from hf_nas.nncf_config import NncfConfig, nncf_space, with_space
from hf_nas.search import SuperNetworkEvaluator, read_search_progression
from hf_nas.space import CustomSpace
from tests.examples.runs import Script, read, weights
from trainer_plugins import MovementSparsityTrainer, SuperNetworkTrainer
from trainer_plugins.search.published_files import published_groups


FLAGS = {
    "learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 8, "save_strategy": "steps",
    "save_steps": 5, "logging_steps": 1, "seed": 7, "use_cpu": True, "selection_split": 0.3,
}  # fmt: skip
MOVEMENT = ("--movement_warmup_start_epoch", "1", "--movement_warmup_end_epoch", "2")
# Four heads and few neurons: sizes come in large steps.
GENERATED = (
    "--space_tolerance",
    "0.2",
    "--importance",
    "movement",
    "--search_space",
    "generated",
    "--space_smallest",
    "0.5",
    "--space_count",
    "3",
)
SEARCH = ("--do_search", "--num_samples", "5", "--search_objectives", "error", "macs", "--max_selection_samples", "16")


@pytest.fixture(scope="module")
def start(run_glue, glue_settings) -> Script:
    return Script(run_glue, FLAGS | glue_settings)


@pytest.fixture(scope="module")
def teacher(start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    start(folder, "--do_train", "--do_eval")
    return str(folder)


@pytest.fixture(scope="module")
def whole(start, teacher, tmp_path_factory) -> Path:
    """Folder of a run that did everything."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start(folder, *command(teacher))
    return folder


def command(teacher: str) -> tuple[str, ...]:
    return ("--do_train", "--do_eval", "--sampling_strategy", "sandwich", "--kd_teacher_model", teacher, *MOVEMENT,
            *GENERATED, *SEARCH)  # fmt: skip


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_one_command_does_all_steps(whole, tiny_model) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(whole)
    structure = describe(model)
    scores = MovementScores.load(whole / "movement_sparsity")
    assert len(scores.weights) == 2 * 6 and all(float(each.abs().max()) > 0 for each in scores.weights.values())
    assert (whole / "movement_sparsity" / "structured_sparsity.csv").stat().st_size > 0
    space = CustomSpace.load(whole / "search_space.json", structure)
    assert space.name == "generated" and len(space.dimensions) == 4
    assert OrderRecord.read(model.config).importance == "movement"
    # The weights that the scores were learnt with are thrown away; the embeddings start from the pretrained ones.
    results = read(whole / "search", "result.json")
    assert results["objectives"] == ["error", "macs"] and len(results["trials"]) == 5
    for trial in results["trials"]:
        space.encode(SubNetwork.from_dict(trial["sub_network"], structure))
    small = AutoModelForSequenceClassification.from_pretrained(whole / "extracted")
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())


def test_the_importance_alone_and_then_from_its_file(start, whole, teacher, tmp_path) -> None:
    start(tmp_path / "importance", "--do_train", "--only_generate_importance_weight", "--selection_split", "0.3",
          "--kd_teacher_model", teacher, "--sampling_strategy", "sandwich", *MOVEMENT,
          num_train_epochs=4)  # fmt: skip
    assert not (tmp_path / "importance" / "model.safetensors").exists()
    first, second = (MovementScores.load(folder / "movement_sparsity") for folder in (tmp_path / "importance", whole))
    assert all(torch.equal(first.weights[path], second.weights[path]) for path in second.weights)
    flags = [flag for flag in command(teacher) if flag not in MOVEMENT]
    start(tmp_path / "trained", *flags, "--reorg_cache_model", str(tmp_path / "importance" / "movement_sparsity"))
    assert not (tmp_path / "trained" / "movement_sparsity").exists()
    ours, theirs = weights(tmp_path / "trained"), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_size_is_asked_for_once_the_importance_is_learnt(start, teacher, tmp_path) -> None:
    flags = [flag for flag in command(teacher) if flag not in GENERATED]
    generated = ("--importance", "movement", "--search_space", "generated", "--space_count", "3")
    with pytest.raises(ValueError, match="No threshold leaves .* of the full model.; choose one of these shares"):
        start(tmp_path, *flags, *generated, space_tolerance=1e-6, space_smallest=0.5, save_steps=2, max_steps=2)
    learnt = (tmp_path / "movement_sparsity" / "importance.safetensors").stat().st_mtime_ns
    start(tmp_path, *flags, *generated, space_tolerance=0.2, space_smallest=0.5, save_steps=2, max_steps=2)
    assert (tmp_path / "movement_sparsity" / "importance.safetensors").stat().st_mtime_ns == learnt
    # The super-network is trained in that space now.
    with pytest.raises(ValueError, match="holds another run .*space_smallest was 0.5 and is 0.6"):
        start(tmp_path, *flags, *generated, space_tolerance=0.2, space_smallest=0.6, save_steps=2, max_steps=2)


def killed_when(monkeypatch, owner: type, method: str, calls: int) -> None:
    """Let a method die in its n-th call."""
    stock, done = getattr(owner, method), []

    def die(self, *args, **kwargs):
        done.append(1)
        if len(done) == calls:
            raise KeyboardInterrupt
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, die)


@pytest.mark.parametrize(
    "owner, method, calls",
    [
        (MovementSparsityTrainer, "training_step", 8),
        (MovementScores, "save", 1),
        (CustomSpace, "save", 1),
        (SuperNetworkTrainer, "training_step", 8),
        (SuperNetworkEvaluator, "__call__", 3),
    ],
)
def test_killed_at_any_stage_it_ends_in_the_same(start, whole, teacher, tmp_path, owner, method, calls) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_when(patch, owner, method, calls)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, *command(teacher))
    start(tmp_path, *command(teacher))
    ours, theirs = weights(tmp_path), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # So that what continues from this model does not sort its units again.
    orders = [OrderRecord.read(read(folder, "config.json")) for folder in (tmp_path, whole)]
    assert orders[0] == orders[1] and orders[0].importance == "movement" and orders[0].digest is not None
    assert (tmp_path / "search_space.json").read_text() == (whole / "search_space.json").read_text()
    results = [read(folder / "search", "result.json") for folder in (tmp_path, whole)]
    for trial in (*results[0]["trials"], *results[1]["trials"]):
        del trial["seconds"]
    assert results[0] == results[1]


def broken_off(folder: Path) -> None:
    """As if the process had been killed while it wrote the last checkpoint: `Trainer` writes its state last."""
    last = Path(get_last_checkpoint(folder))
    (last / "trainer_state.json").unlink()
    assert len(list(folder.glob("checkpoint-*"))) > 1


def test_killed_while_a_checkpoint_is_written(start, whole, teacher, tmp_path, monkeypatch) -> None:
    flags = (*command(teacher), "--save_steps", "2")
    with pytest.MonkeyPatch.context() as patch:
        killed_when(patch, MovementScores, "save", 1)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, *flags)
    broken_off(tmp_path / "movement_sparsity")
    with pytest.MonkeyPatch.context() as patch:
        killed_when(patch, SuperNetworkTrainer, "training_step", 8)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, *flags)
    broken_off(tmp_path)
    start(tmp_path, *flags)
    ours, theirs = weights(tmp_path), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_not_another_one(start, tmp_path) -> None:
    start(tmp_path, "--do_train", max_steps=2)
    for flag, value, name in (
        ("--train_sampling_strategy", "sequential", "train_sampling_strategy was 'random' and is 'sequential'"),
        ("--lr_scheduler_kwargs", "{}", "lr_scheduler_kwargs was None and is {}"),
        ("--neftune_noise_alpha", "5", "neftune_noise_alpha was None and is 5.0"),
        ("--dataloader_drop_last", "True", "dataloader_drop_last was False and is True"),
    ):
        with pytest.raises(ValueError, match=f"holds another run .{name}"):
            start(tmp_path, "--do_train", flag, value, max_steps=2)


def test_an_extracted_model_is_shrunk_once_more_by_scores_of_its_own(start, whole, teacher, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    assert OrderRecord.read(read(whole / "extracted", "config.json")) is None
    start(tmp_path, "--do_train", "--sampling_strategy", "sandwich", *MOVEMENT, "--importance", "movement",
          model_name_or_path=whole / "extracted", kd_teacher_model=teacher)  # fmt: skip
    assert "in order of movement." in caplog.text and "already" not in caplog.text
    caplog.clear()
    # A model that is sorted may be given the scores that it was sorted by, which are not applied again.
    start(tmp_path / "on", "--do_train", "--sampling_strategy", "sandwich", model_name_or_path=whole,
          reorg_cache_model=whole / "movement_sparsity")  # fmt: skip
    assert "The units of this model are in order of movement already" in caplog.text
    with pytest.raises(ValueError, match="put in order of movement before, so scores from elsewhere do not belong"):
        start(tmp_path / "off", "--do_train", "--sampling_strategy", "sandwich", model_name_or_path=whole,
              reorg_cache_model=other_scores(whole, tmp_path))  # fmt: skip


def other_scores(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    scores = load_file(whole / "movement_sparsity" / "importance.safetensors")
    with safe_open(whole / "movement_sparsity" / "importance.safetensors", "pt") as file:
        save_file({name: -score for name, score in scores.items()}, folder / "importance.safetensors", file.metadata())
    return folder


def test_examples_of_the_search_take_no_part_in_the_importance(start, tmp_path, monkeypatch) -> None:
    seen = []
    train = MovementSparsityTrainer.train
    monkeypatch.setattr(
        MovementSparsityTrainer,
        "train",
        lambda self, **given: (seen.append(len(self.train_dataset)), train(self, **given)),
    )
    for split in ("0.25", "0.5"):
        start(tmp_path / split, "--do_train", "--only_generate_importance_weight", "--selection_split", split,
              *MOVEMENT, num_train_epochs=None)  # fmt: skip
    assert seen[0] * 2 == seen[1] * 3


def test_a_trained_super_network_is_searched_in_its_generated_space(start, whole, tmp_path) -> None:
    flags = ("--importance", "movement", "--search_space", "generated")
    no_model = {"model_name_or_path": None}
    # Whether the flags of the training are given or not: what it was trained in is on record.
    for name, given in {"flags": flags, "none": ()}.items():
        start(tmp_path / name, "--checkpoint_dir_model", str(whole), *given, *SEARCH, **no_model)
        first, second = (rows(folder / "search" / "evaluations.csv") for folder in (whole, tmp_path / name))
        assert [row[:-1] for row in first] == [row[:-1] for row in second]
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "search_space.json").unlink()
    for given in (flags, ()):
        with pytest.raises(ValueError, match="was trained in a space of its own, but '.*search_space.json' does not"):
            start(tmp_path / "no", "--checkpoint_dir_model", str(tmp_path / "copy"), *given, *SEARCH, **no_model)


def test_a_trained_super_network_is_searched_in_the_space_of_its_training_by_name(start, tmp_path) -> None:
    start(tmp_path / "trained", "--do_train", "--sampling_strategy", "random", "--search_space", "medium")
    searching = ("--checkpoint_dir_model", str(tmp_path / "trained"), *SEARCH)
    start(tmp_path / "same", *searching, model_name_or_path=None)
    assert read(tmp_path / "same" / "search", "result.json")["space"] == "medium"
    start(tmp_path / "other", *searching, "--search_space", "layer", model_name_or_path=None)
    assert read(tmp_path / "other" / "search", "result.json")["space"] == "layer"


def test_flags_that_a_step_does_not_read_do_not_make_it_another_run(start, tmp_path) -> None:
    teacher = ("--do_train", "--sampling_strategy", "standard", "--importance", "none", "--save_strategy", "no")
    importance = ("--do_train", "--only_generate_importance_weight", *MOVEMENT)
    for flags, name in ((teacher, "teacher"), (importance, "importance")):
        start(tmp_path / name, *flags, num_train_epochs=None if name == "importance" else 1)
        before = sorted(path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*.safetensors"))
        again = [*flags, "--space_tolerance", "0.05", "--space_smallest", "0.3"]
        start(tmp_path / name, *again, num_train_epochs=None if name == "importance" else 1)
        assert sorted(path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*.safetensors")) == before


def test_a_run_that_was_refused_before_it_did_anything_is_no_other_run(start, tmp_path) -> None:
    flags = ("--do_train", "--only_generate_importance_weight", "--movement_num_train_epochs")
    with pytest.raises(ValueError, match="num_train_epochs is 2, but the warm-up of movement sparsity ends"):
        start(tmp_path, *flags, "2", *MOVEMENT)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["run.json"]
    start(tmp_path, *flags, "3", *MOVEMENT)
    assert (tmp_path / "movement_sparsity" / "importance.safetensors").is_file()


def test_a_trained_super_network_is_evaluated_and_searched_with_the_flags_of_its_training(
    start, tmp_path, monkeypatch
) -> None:
    path, folder = config(tmp_path / "config.json"), tmp_path / "trained"
    start(folder, "--do_train", "--nncf_config", path, "--save_strategy", "no")
    monkeypatch.setattr(Trainer, "train", None)  # nothing is trained any more
    start(tmp_path / "evaluated", "--do_eval", "--nncf_config", path, model_name_or_path=folder)
    assert 0 <= read(tmp_path / "evaluated", "eval_results.json")["eval_accuracy"] <= 1
    assert not (tmp_path / "evaluated" / "movement_sparsity").exists()
    flags = ("--do_search", "--nncf_config", path, "--checkpoint_dir_model", str(folder), "--num_samples", "3")
    start(tmp_path / "searched", *flags, "--max_selection_samples", "16", model_name_or_path=None)
    result = read(tmp_path / "searched" / "search", "result.json")
    assert result["space"] == "nncf" and len(result["trials"]) == 3


NODE = "BertForSequenceClassification/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{}]"
ATTENTION = NODE + "/BertAttention[attention]/BertSelfAttention[self]/NNCFLinear[{}]/linear_0"
FEED_FORWARD = NODE + "/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"


def config(path: Path, **changes) -> str:
    """A configuration for the tiny model, with a comment and a trailing comma as in the published ones."""
    groups = [[ATTENTION.format(i, name) for name in ("query", "key", "value")] for i in range(2)]
    groups += [[FEED_FORWARD.format(i)] for i in range(2)]
    data = {
        "input_info": [{"sample_size": [1, 12], "type": "long", "keyword": "input_ids"}],
        "compression": [
            {
                "algorithm": "movement_sparsity",
                "params": {
                    "warmup_start_epoch": 1, "warmup_end_epoch": 2, "importance_regularization_factor": 0.02,
                },
                "sparse_structure_by_scopes": [
                    {"mode": "block", "sparse_factors": [4, 4], "target_scopes": "{re}.*BertAttention.*"},
                    {"mode": "per_dim", "axis": 0, "target_scopes": "{re}.*BertIntermediate.*"},
                    {"mode": "per_dim", "axis": 1, "target_scopes": "{re}.*BertOutput.*"},
                ],
                "ignored_scopes": ["{re}.*NNCFEmbedding.*", "{re}.*pooler.*", "{re}.*classifier.*"],
            }
        ],
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "progressivity_of_elasticity": ["width"],
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
                "schedule": {
                    "list_stage_descriptions": [
                        {"train_dims": ["width"], "epochs": 1, "width_indicator": 2, "init_lr": 1e-2},
                        {"train_dims": ["width"], "epochs": 2, "width_indicator": -1, "init_lr": 5e-3},
                    ]
                },
                "elasticity": {
                    "available_elasticity_dims": ["width"],
                    "width": {
                        "overwrite_groups": groups,
                        "overwrite_groups_widths": [[16, 12, 8], [16, 4], [32, 20, 9], [32, 11]],
                    },
                },
            },
            "search": {
                "algorithm": "NSGA2", "num_evals": 6, "population": 3, "acc_delta": 20, "ref_acc": -1,
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0}, "eval_metric_name": "eval_accuracy",
            },
        },
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data["bootstrapNAS"][section][name] = value
        else:
            data[key] = value
    text = json.dumps(data, indent=1)
    path.write_text("// for the tests\n" + text[:-2] + ",\n}")
    return str(path)


def test_a_configuration_drives_the_published_command(start, teacher, tmp_path) -> None:
    path = config(tmp_path / "config.json", log_dir=str(tmp_path / "logs"))
    start(tmp_path / "out", "--do_train", "--do_eval", "--do_search", "--nncf_config", path, "--kd_teacher_model",
          teacher, "--save_strategy", "no", "--max_selection_samples", "16")  # fmt: skip
    state = read(tmp_path / "out", "trainer_state.json")
    steps = -(-45 // 8)  # of 64 texts, 19 are held out
    assert state["global_step"] == 3 * steps
    rates = [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry]
    assert rates[0] == pytest.approx(1e-2) and rates[steps] == pytest.approx(5e-3) and rates[-1] < 5e-4
    assert MovementScores.load(tmp_path / "out" / "movement_sparsity").factors(
        "bert.encoder.layer.0.attention.self.query"
    ) == (4, 4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    structure = describe(model)
    result = read(tmp_path / "out" / "search", "result.json")
    assert result["method"] == "nsga2" and result["space"] == "nncf" and len(result["trials"]) == 6
    assert result["objectives"] == ["error", "macs"]
    progression = rows(tmp_path / "logs" / "search_progression.csv")
    assert len(progression) == 6 and all(row[1] == "MACs" and row[3] == "top1_acc" for row in progression)
    cache = rows(tmp_path / "logs" / "cache_MACs.csv")
    assert cache[0][0].startswith("(") and float(cache[0][1]) == float(progression[0][2])
    front = read(tmp_path / "out" / "search", "front.json")
    assert front
    # The fewest MACs among those that lose less than 20 points of the largest.
    metrics = [trial["metrics"]["accuracy"] for trial in result["trials"]]
    largest = metrics[0]
    near = [trial for trial in result["trials"] if trial["metrics"]["accuracy"] > largest - 0.2]
    best = min(near, key=lambda trial: trial["costs"][1])
    chosen = SubNetwork.load(tmp_path / "out" / "extracted", structure)
    assert chosen == SubNetwork.from_dict(best["sub_network"], structure)
    nncf = NncfConfig.load(path)
    searched = nncf_space(nncf, model, nncf.training.schedule.stages[-1])
    assert CustomSpace.load(tmp_path / "out" / "search_space.json", structure).to_dict() == searched.to_dict()
    groups = published_groups(nncf, nncf_space(nncf, model), model)
    progress = read_search_progression(tmp_path / "logs" / "search_progression.csv", groups)
    assert [trial.sub_network.to_dict() for trial in progress.trials] == [t["sub_network"] for t in result["trials"]]


def test_a_configuration_without_widths_has_a_space_generated_into_it(start, tmp_path) -> None:
    elasticity = {"available_elasticity_dims": ["width", "depth"], "depth": {"skipped_blocks": []}}
    stages = [
        {"train_dims": ["width"], "epochs": 1, "width_indicator": -1, "init_lr": 1e-2},
        {"train_dims": ["width", "depth"], "epochs": 1, "width_indicator": 2, "init_lr": 5e-3},
    ]
    path = config(
        tmp_path / "config.json", training__elasticity=elasticity, training__progressivity_of_elasticity=
        ["width", "depth"], training__schedule={"list_stage_descriptions": stages},
    )  # fmt: skip
    start(tmp_path / "out", "--do_train", "--do_search", "--nncf_config", path, "--save_strategy", "no",
          "--max_selection_samples", "16", "--space_smallest", "0.2", "--space_tolerance", "0.2")  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    space = CustomSpace.load(tmp_path / "out" / "search_space.json", describe(model))
    result = read(tmp_path / "out" / "search", "result.json")
    assert all(space.encode(SubNetwork.from_dict(t["sub_network"], describe(model))) for t in result["trials"])
    # Of each list the last stage trains the two widest, though more were generated.
    assert max(len([c for c in d.choices if c]) for d in space.dimensions) <= 2
    nncf = with_space(NncfConfig.load(path), space, model)
    progress = read_search_progression(
        tmp_path / "out" / "search" / "search_progression.csv", published_groups(nncf, space, model)
    )
    assert [trial.sub_network.to_dict() for trial in progress.trials] == [t["sub_network"] for t in result["trials"]]


def test_a_search_that_the_published_files_cannot_tell_ends_all_the_same(start, tmp_path, caplog) -> None:
    search = {"algorithm": "NSGA2", "num_evals": 4, "population": 2, "acc_delta": 20, "ref_acc": -1,
              "batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}  # fmt: skip
    sample = {"sample_size": [1, 12], "type": "long", "keyword": "input_ids"}
    path = tmp_path / "search.json"
    path.write_text(json.dumps({"input_info": [sample], "bootstrapNAS": {"search": search}}))
    start(tmp_path / "out", "--do_train", "--sampling_strategy", "sandwich", "--search_space", "small", "--do_search",
          "--nncf_config", str(path))  # fmt: skip
    assert "not written in the published format as well" in caplog.text
    assert len(read(tmp_path / "out" / "search", "result.json")["trials"]) == 4
    assert (tmp_path / "out" / "extracted" / "config.json").is_file()


@pytest.mark.parametrize("limit", ["params", "macs"])
def test_limits_that_the_space_cannot_keep_are_refused_before_training(start, tmp_path, limit, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "train", None)
    path = config(tmp_path / "config.json")
    refusal = "The limit of (parameters|macs) is 0.1, but the smallest sub-network of the search space has"
    with pytest.raises(ValueError, match=refusal):
        start(tmp_path / "out", "--do_train", "--do_search", "--nncf_config", path, "--importance", "none",
              f"--max_{limit}_ratio", "0.1")  # fmt: skip
    with pytest.raises(ValueError, match=refusal):
        start(tmp_path / "named", "--do_train", "--do_search", "--sampling_strategy", "random", "--search_space",
              str(a_space_of_large_ones(tmp_path)), f"--max_{limit}_ratio", "0.1")  # fmt: skip


def a_space_of_large_ones(tmp_path: Path) -> Path:
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"sub_layers": {"encoder.0.attention": [3, 4]}}))
    return path


def test_flags_win_over_the_configuration(start, tmp_path) -> None:
    path = config(tmp_path / "config.json")
    start(tmp_path / "out", "--do_train", "--do_search", "--nncf_config", path, "--num_samples", "4",
          "--importance", "magnitude", "--max_macs_ratio", "0.9", "--max_selection_samples", "16")  # fmt: skip
    result = read(tmp_path / "out" / "search", "result.json")
    assert len(result["trials"]) == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--nncf_config", "nowhere.json"), "nowhere.json"),
        (("--nncf_compat",), "nncf_compat is True, but there is no configuration"),
        (
            ("--kd_mode", "self_attention_distillation"),
            "kd_mode is 'self_attention_distillation', but hf-nas",
        ),
        (("--kd_mode", "orginal"), "kd_mode is 'orginal'; choose 'original'"),
        (("--reorg_cache_model", "nowhere", "--importance", "none"), "has scores, but importance is 'none' and no"),
        (("--do_search", "--min_metric", "84"), "min_metric is 84.0, but accuracy is at most 1; choose less"),
        (("--kd_temperature", "0"), "kd_temperature is 0"),
        (("--reorg_cache_model", "nowhere", "--importance", "movement"), "nowhere"),
        (("--reorg_cache_model", "nowhere"), "nowhere"),
        (("--unit_ranking", "best"), "unit_ranking is 'best'; choose one of all, kept, published"),
        (("--movement_warmup_end_epoch", "0.5"), "movement_warmup_start_epoch is 1"),
        (("--movement_num_train_epochs", "2", "--importance", "movement"), "num_train_epochs is 2, but the warm-up"),
        (
            ("--do_search", "--search_objectives", "error", "speed"),
            "search_objectives are 'error' 'speed'; give error",
        ),
        (("--do_search", "--search_objectives", "error"), "give error and one or more of params, macs"),
        (("--do_search", "--max_metric_drop", "-1"), "max_metric_drop is -1"),
        (("--metric_for_best_model", "f1"), "--metric_for_best_model is 'f1', .* choose one of accuracy, loss"),
    ],
)
def test_refused_before_training(start, tmp_path, monkeypatch, flags, message) -> None:
    monkeypatch.setattr(Trainer, "train", None)  # what is refused is refused before this is called
    with pytest.raises(ValueError, match=message):
        start(tmp_path, "--do_train", "--sampling_strategy", "sandwich", *flags)


def test_teachers_that_cannot_teach_are_refused(start, tiny_model, tmp_path) -> None:
    flags = ("--do_train", "--kd_teacher_model")
    with pytest.raises(ValueError, match="has no weights for 'classifier.bias'"):
        start(tmp_path / "a", *flags, tiny_model)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=5).save_pretrained(tmp_path / "five")
    with pytest.raises(ValueError, match="The teacher knows 5 labels and the model 2"):
        start(tmp_path / "b", *flags, str(tmp_path / "five"))
