"""What transformers, PEFT and Trainer do with models, they do with extracted ones: tied, sharded, offloaded."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hf_nas import extract, save_extracted
from tests import zoo


CASE = "everything at once"
NAMES = ("bert", "mpnet", "llama", "gpt2", "t5", "bart")


def saved(name: str, folder, **changes) -> PreTrainedModel:
    """An extracted model with uneven layers, saved in the folder."""
    model = zoo.build(name, **changes)
    sub_network = zoo.corner_cases(model)[CASE]
    small = extract(model, sub_network)
    save_extracted(small, sub_network, folder)
    return small


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}},
                                     {"low_cpu_mem_usage": True}, {"dtype": "auto"}, {"dtype": torch.float32},
                                     {"use_safetensors": True}], ids=str)  # fmt: skip
def test_options_of_from_pretrained(options: dict, tmp_path) -> None:
    for name in NAMES:
        small = saved(name, tmp_path / name)
        inputs = zoo.inputs_for(small)
        loaded = type(small).from_pretrained(tmp_path / name, **options)
        assert not loaded.training and type(loaded) is type(small)
        assert torch.equal(zoo.logits(loaded, inputs), zoo.logits(small, inputs))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_the_same_weights(name: str, dtype: torch.dtype, tmp_path) -> None:
    small = saved(name, tmp_path)
    loaded = type(small).from_pretrained(tmp_path, dtype=dtype)
    for key, tensor in small.state_dict().items():
        found = loaded.state_dict()[key]
        wanted = tensor.to(found.dtype)  # T5 keeps some weights in float32
        assert torch.equal(found, wanted), key
    assert any(p.dtype == dtype for p in loaded.parameters())
    loaded.save_pretrained(tmp_path / "half")
    again = type(small).from_pretrained(tmp_path / "half", dtype="auto")
    assert all(p.dtype == q.dtype for p, q in zip(again.parameters(), loaded.parameters()))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_layers_offloaded_to_disk(name: str, tmp_path) -> None:
    small = saved(name, tmp_path)
    inputs = zoo.inputs_for(small)
    layers = {"bert": "bert.encoder.layer", "llama": "model.layers"}[name]
    places = {child: "cpu" for child, _ in small.named_children()}
    base, path = layers.split(".", 1)
    del places[base]
    places |= {
        f"{base}.{child}": "cpu" for child, _ in small.base_model.named_children() if not path.startswith(child)
    }
    depth = len(small.base_model.get_submodule(path))
    places |= {f"{layers}.{index}": "disk" if index else "cpu" for index in range(depth)}
    loaded = type(small).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert "disk" in loaded.hf_device_map.values()
    assert torch.equal(zoo.logits(loaded, inputs), zoo.logits(small, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_sharded_files(name: str, tmp_path) -> None:
    small = saved(name, tmp_path / "whole")
    inputs = zoo.inputs_for(small)
    loaded = type(small).from_pretrained(tmp_path / "whole")
    loaded.save_pretrained(tmp_path / "shards", max_shard_size="9KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again = type(small).from_pretrained(tmp_path / "shards", device_map="auto")
    assert torch.equal(zoo.logits(again, inputs), zoo.logits(small, inputs))


@pytest.mark.parametrize("name, tied", [*[(name, True) for name in ("llama", "gpt2", "t5", "bart")],
                                        ("llama", False), ("gpt2", False)])  # fmt: skip
def test_tied_embeddings_stay_tied(name: str, tied: bool, tmp_path) -> None:
    small = saved(name, tmp_path, tie_word_embeddings=tied)
    inputs = zoo.inputs_for(small)
    loaded = type(small).from_pretrained(tmp_path)
    shared = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert shared == tied and ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    assert torch.equal(zoo.logits(loaded, inputs), zoo.logits(small, inputs))


def test_a_users_sub_class_with_a_method_and_weights_of_its_own(tmp_path) -> None:
    small = saved("llama", tmp_path)
    inputs = zoo.inputs_for(small)

    class Scaled(LlamaForCausalLM):
        def __init__(self, config, scale: float = 1.0):
            super().__init__(config)
            self.scale = torch.nn.Parameter(torch.tensor(scale))
            self.post_init()

        def forward(self, *args, **kwargs):
            result = super().forward(*args, **kwargs)
            result.logits = result.logits * self.scale
            return result

    loaded = Scaled.from_pretrained(tmp_path, scale=2.0).eval()
    assert torch.equal(zoo.logits(loaded, inputs), zoo.logits(small, inputs) * float(loaded.scale))
    loaded.scale.data.fill_(3.0)
    loaded.save_pretrained(tmp_path / "own")
    again = Scaled.from_pretrained(tmp_path / "own").eval()
    assert torch.equal(zoo.logits(again, inputs), zoo.logits(small, inputs) * 3.0)


PEFT = {
    "bert": ("SEQ_CLS", ["query", "value", "dense"], AutoModelForSequenceClassification),
    "llama": ("CAUSAL_LM", ["q_proj", "v_proj", "down_proj"], AutoModelForCausalLM),
}


@pytest.mark.parametrize("name", PEFT)
def test_lora_on_an_uneven_model(name: str, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    task, targets, auto_class = PEFT[name]
    small = saved(name, tmp_path / "small")
    inputs = zoo.inputs_for(small, labels=True)
    base = auto_class.from_pretrained(tmp_path / "small")
    config = peft.LoraConfig(r=2, task_type=task, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(zoo.without_dropout(base), config)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items() if "lora" not in key}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted.train()(**inputs).loss
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    heads = ("classifier", "modules_to_save")
    assert all(torch.equal(base.state_dict()[k], v) for k, v in before.items() if not any(h in k for h in heads))
    adapted.save_pretrained(tmp_path / "adapter")
    asked = {key: value for key, value in inputs.items() if key != "labels"}
    wanted = zoo.logits(adapted.eval(), asked)
    assert (wanted - zoo.logits(small, asked)).abs().max() > 1e-3
    again = peft.PeftModel.from_pretrained(auto_class.from_pretrained(tmp_path / "small"), tmp_path / "adapter").eval()
    assert torch.equal(zoo.logits(again, asked), wanted)
    # The Auto classes of transformers load the model that an adapter names.
    direct = auto_class.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(zoo.logits(direct, asked), wanted, atol=1e-6)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    reloaded = auto_class.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(zoo.logits(reloaded, asked), wanted, atol=1e-5)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, model: PreTrainedModel, rows: int):
        self.inputs = zoo.inputs_for(model, batch=rows, length=2 * rows, labels=True)

    def __len__(self) -> int:
        return len(self.inputs["labels"])

    def __getitem__(self, index: int) -> dict:
        return {key: value[index] for key, value in self.inputs.items()}


def trainer_for(model: PreTrainedModel, folder, **options) -> Trainer:
    settings = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 5e-3,
        "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps", "report_to": [], "use_cpu": True, "seed": 3,
        "disable_tqdm": True, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
        "save_total_limit": None, "logging_steps": 1,
    }  # fmt: skip
    rows = _Rows(model, 8)
    return Trainer(model, TrainingArguments(**{**settings, **options}), train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_fine_tuning_with_the_plain_trainer(name: str, tmp_path) -> None:
    """The best checkpoint comes back at the end, and a run that was stopped half-way ends where a whole one does."""
    small = saved(name, tmp_path / "small")
    load = lambda: type(small).from_pretrained(tmp_path / "small")  # noqa: E731
    inputs = zoo.inputs_for(small)
    whole = trainer_for(load(), tmp_path / "whole")
    before = whole.evaluate()["eval_loss"]
    whole.train()
    best = type(small).from_pretrained(whole.state.best_model_checkpoint).eval()
    assert torch.equal(zoo.logits(whole.model.eval(), inputs), zoo.logits(best, inputs))
    history = [entry for entry in whole.state.log_history if "eval_loss" in entry and entry["step"]]
    losses = {entry["step"]: entry["eval_loss"] for entry in history}
    assert whole.state.best_model_checkpoint.endswith(f"-{min(losses, key=losses.get)}")
    assert min(losses.values()) < before
    resumed = trainer_for(load(), tmp_path / "resumed", load_best_model_at_end=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    last = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    resumed.save_model(tmp_path / "end")
    for key, tensor in load_file(tmp_path / "end" / "model.safetensors").items():
        assert torch.allclose(tensor, last[key], atol=1e-6), key
    config = json.loads((tmp_path / "end" / "config.json").read_text())
    assert config["architectures"] == [type(small).__name__] and "auto_map" not in config
