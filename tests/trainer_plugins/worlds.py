"""Tiny training runs that the trainer tests start in this process, under torchrun, or to kill them.

Usage: python -m tests.trainer_plugins.worlds OUTPUT_DIR JSON_OF_SETTINGS
"""

import json
import os
import sys
import time

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainingArguments, default_data_collator

from tests import zoo
from trainer_plugins import SuperNetworkArguments, SuperNetworkTrainer


def rows(count: int = 48, length: int = 8) -> list[dict]:
    """Examples whose label can be learnt: it is told by the first token."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 50, (count, length), generator=generator)
    return [
        {"input_ids": row.tolist(), "attention_mask": [1] * length, "labels": int(row[0]) % 3} for row in ids
    ]  # fmt: skip


def trainer(
    output_dir: str, strategy: str | None = "sandwich", model: str = "bert", **settings
) -> SuperNetworkTrainer:
    """A trainer of a tiny model without dropout."""
    ours = {key: settings.pop(key) for key in ("search_space", "temperature", "importance") if key in settings}
    arguments = TrainingArguments(
        output_dir,
        **{
            "per_device_train_batch_size": 8,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 0,
            **settings,
        },
    )
    data = rows()
    if model in ("llama", "t5"):
        data = [{**row, "labels": row["input_ids"]} for row in data]
    return SuperNetworkTrainer(
        model=zoo.without_dropout(zoo.build(model)),
        args=arguments,
        super_network=SuperNetworkArguments(sampling_strategy=strategy, num_random_sub_nets=2, **ours),
        train_dataset=data,
        data_collator=default_data_collator,
    )


class Slow(TrainerCallback):
    """Makes steps long enough to be killed in between."""

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.3)


def main() -> None:
    output_dir, settings = sys.argv[1], json.loads(sys.argv[2])
    resume, slow = settings.pop("resume", False), settings.pop("slow", False)
    run = trainer(output_dir, **settings)
    drawn: list[str] = []
    passes_of_step = run.passes_of_step
    run.passes_of_step = lambda step: drawn.append(repr(passes_of_step(step))) or passes_of_step(step)
    if slow:
        run.add_callback(Slow())
    run.train(resume_from_checkpoint=resume or None)
    rank = os.environ.get("RANK", "0")
    weights = {name: tensor.contiguous().clone() for name, tensor in run.model.state_dict().items()}
    save_file(weights, f"{output_dir}/final_{rank}.safetensors")
    with open(f"{output_dir}/drawn_{rank}.json", "w") as file:
        json.dump(drawn, file)


if __name__ == "__main__":
    main()
