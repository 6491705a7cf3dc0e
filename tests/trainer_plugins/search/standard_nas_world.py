"""A tiny standard NAS that tests start in this process, under torchrun, beside another one, or to kill it.

Usage: python -m tests.trainer_plugins.search.standard_nas_world OUTPUT_DIR JSON_OF_SETTINGS
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from transformers import EvalPrediction

from tests.trainer_plugins.worlds import rows, trainer
from trainer_plugins import SearchArguments, SearchOutcome, SuperNetworkTrainer, run_standard_nas
from trainer_plugins.search import candidates


TRAINING = {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 8, "learning_rate": 5e-3}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(output_dir: str | Path, dropout: float = 0.1, **settings: Any) -> SuperNetworkTrainer:
    run = trainer(str(output_dir), None, **{**TRAINING, **settings})
    run.train_dataset = rows()[:32]
    # Extracted models are built by the configuration.
    run.model.config.hidden_dropout_prob = run.model.config.attention_probs_dropout_prob = dropout
    return run


def start(output_dir: str | Path, run: SuperNetworkTrainer | None = None, training: Any = (), **settings: Any):
    """A search with 6 candidates unless `settings` say otherwise."""
    run = run or make_trainer(output_dir, **dict(training))
    settings = {"do_search": True, "nas_type": "standard", "search_strategy": "moasha", "num_samples": 6, **settings}
    return run_standard_nas(
        run,
        SearchArguments(**settings),
        selection_dataset=rows(72)[48:],
        compute_metrics=accuracy,
        report_datasets={"validation": rows()[32:]},
        output_dir=output_dir,
    )


def facts(outcome: SearchOutcome) -> dict[str, Any]:
    """What must be the same in an interrupted search."""
    trials = [
        [list(trial.encoding), list(trial.costs), {name: float(value) for name, value in trial.metrics.items()}]
        for trial in outcome.result.trials
    ]
    return {"trials": trials, "front": list(outcome.result.pareto), "chosen": outcome.chosen, **outcome.metrics}


def main() -> None:
    output_dir, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    name, pause = settings.pop("name", "outcome"), settings.pop("pause", 0.0)
    decide = candidates.Candidates._decide

    def slow(self, *arguments):
        # Epochs long enough to be killed in, with a sign that there was one.
        time.sleep(pause)
        return decide(self, *arguments)

    candidates.Candidates._decide = slow
    outcome = start(output_dir, **settings)
    (output_dir / f"{name}_{os.environ.get('RANK', '0')}.json").write_text(json.dumps(facts(outcome)))


if __name__ == "__main__":
    main()
