"""BLEU of a translation model that is trained from scratch, and of what is left of it with fewer attention heads.

    dense     a Marian of 72 heads (encoder, cross- and decoder self-attention together), trained from scratch
    dsp       heads of it chosen by differentiable subset pruning (gates alone, in an epoch), then fine-tuned
    michel    heads of it chosen by the gradients of the training set, then fine-tuned in the same way

BLEU is sacrebleu's, with beam search, of the validation and the test set, on neither of which anything is chosen. The
small models are the extracted ones, which some sentences are translated with in the end, after loading them as anybody
would. Finished runs are not repeated, so a killed benchmark continues; those that were made with other flags are set
aside and made again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import load_dataset
from script_runs import TRANSLATION, add_run_arguments, run_script, spread
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import hf_nas  # noqa: F401 (loads what has other sizes in each layer)
from hf_nas.files import write_json


HEADS = 72
COMMON = (
    "--max_source_length 64 --max_target_length 64 --pad_to_max_length False --do_eval --do_predict "
    "--predict_with_generate --num_beams 5 --per_device_train_batch_size 128 --per_device_eval_batch_size 64 "
    "--train_sampling_strategy group_by_length --label_smoothing_factor 0.1 --adam_beta2 0.98 --save_strategy epoch "
    "--save_total_limit 1 --logging_steps 50 --disable_tqdm True"
)
NEW_MODEL = (
    "--model_type marian --train_tokenizer --vocab_size 4000 --config_overrides d_model=256,encoder_layers=3,"
    "decoder_layers=3,encoder_attention_heads=8,decoder_attention_heads=8,encoder_ffn_dim=512,decoder_ffn_dim=512,"
    "dropout=0.15,max_position_embeddings=128,activation_function=relu"
)
DENSE = "--do_train --learning_rate 1e-3 --lr_scheduler_type linear --warmup_steps 400"
GATES = (
    "--do_train --num_train_epochs 1 --pruning_method dsp --annealing --initial_temperature 10 --pruning_lr 0.5 "
    "--lr_scheduler_type linear"
)
IMPORTANCE = "--pruning_method michel"
METHODS = {"dsp": GATES, "michel": IMPORTANCE}
FINETUNE = "--do_final_finetune --final_finetune_learning_rate 3e-4 --final_finetune_scheduler_type linear"


class Runs:
    """The runs of one seed."""

    def __init__(self, arguments: argparse.Namespace, seed: int):
        self.arguments, self.seed = arguments, seed
        self.dense_folder = arguments.output_dir / f"dense-{seed}"

    def _script(self, folder: Path, model: Path | None, flags: str) -> None:
        source, target = self.arguments.languages
        flags = f"{COMMON} --source_lang {source} --target_lang {target} {flags}"
        run_script(
            self.arguments, folder, flags, data=self.arguments.data_root / "multi30k", model=model, seed=self.seed,
            script=TRANSLATION, last="predict_results.json", after=[] if model is None else [model],
        )  # fmt: skip

    def dense(self) -> dict:
        """Train from scratch; BLEU and size."""
        folder = self.dense_folder
        self._script(folder, None, f"{NEW_MODEL} {DENSE} --num_train_epochs {self.arguments.epochs:g}")
        return {**_scores(folder), "parameters": _model(folder).num_parameters(), "model": str(folder)}

    def small(self, method: str, heads: int) -> dict:
        """Prune the trained model and fine-tune it; BLEU and size."""
        folder = self.arguments.output_dir / f"{method}-{heads}-{self.seed}"
        flags = f"{METHODS[method]} --num_of_heads {heads} {FINETUNE}"
        if method == "michel":
            # One step, and so one point on the way, of which the translations are scored.
            flags += f" --heads_per_step {HEADS - heads}"
        self._script(folder, self.dense_folder, f"{flags} --final_finetune_epochs {self.arguments.finetune_epochs:g}")
        report = json.loads((folder / "pruned" / "pruning.json").read_text())
        by_kind = report["heads_by_kind"]
        return {
            **_scores(folder), "before_finetuning": _bleu(folder / "pruned"), "parameters": report["parameters"],
            "heads_by_kind": by_kind, "model": str(folder / "finetuned"),
        }  # fmt: skip


def _model(folder: Path | str) -> AutoModelForSeq2SeqLM:
    return AutoModelForSeq2SeqLM.from_pretrained(folder)


def _bleu(folder: Path, name: str = "eval") -> float:
    return json.loads((folder / f"{name}_results.json").read_text())[f"{name}_bleu"]


def _scores(folder: Path) -> dict[str, float]:
    return {"validation": _bleu(folder), "test": _bleu(folder, "predict")}


def translate(folder: str, sentences: Sequence[str]) -> list[str]:
    """Translate by a model that is loaded from its folder."""
    model, tokenizer = _model(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()
    with torch.no_grad():
        tokens = model.generate(**tokenizer(list(sentences), return_tensors="pt", padding=True), num_beams=5)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def show(rows: Sequence[dict], arguments: argparse.Namespace) -> None:
    """Print the table."""
    source, target = arguments.languages
    print(f"\nBLEU from {source} to {target}, mean and standard deviation over seeds {arguments.seeds}")
    columns = ("validation", "test", "before")
    print(f"{'model':8} {'heads':>5} {'parameters':>10} " + " ".join(f"{column:>13}" for column in columns))
    for row in rows:
        runs = row["runs"]
        cells = [spread([run[name] for run in runs]) for name in ("validation", "test")]
        cells.append(spread([run["before_finetuning"] for run in runs]) if row["method"] != "dense" else "")
        millions = sum(run["parameters"] for run in runs) / len(runs) / 1e6
        print(f"{row['method']:8} {row['heads']:>5} {millions:>9.2f}M " + " ".join(f"{cell:>13}" for cell in cells))
        for run, seed in zip(runs, arguments.seeds):
            if kinds := run.get("heads_by_kind"):
                counts = (f"{kind} {count['kept']} of {count['of']}" for kind, count in kinds.items())
                print(f"    seed {seed}: {', '.join(counts)}")
    print("before: of the validation set, before the fine-tuning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, from_scratch=True)
    parser.add_argument("--languages", nargs=2, default=["de", "en"], help="to translate from, and into")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--heads", nargs="+", type=int, default=[HEADS // 2, HEADS // 4], help="to keep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=10, help="of the training from scratch")
    parser.add_argument("--finetune_epochs", type=float, default=2, help="of each small model")
    parser.add_argument("--sentences", type=int, default=3, help="of the test set, that are shown with translations")
    arguments = parser.parse_args()
    if not all(1 <= heads < HEADS for heads in arguments.heads):
        raise SystemExit(f"--heads is {arguments.heads}; give numbers from 1 to {HEADS - 1}.")
    runs = [Runs(arguments, seed) for seed in arguments.seeds]
    rows = [{"method": "dense", "heads": HEADS, "runs": [each.dense() for each in runs]}]
    for heads in arguments.heads:
        for method in arguments.methods:
            rows.append({"method": method, "heads": heads, "runs": [each.small(method, heads) for each in runs]})
    write_json(arguments.output_dir / "results.json", rows)
    show(rows, arguments)
    test = load_dataset("parquet", data_files=str(arguments.data_root / "multi30k" / "test.parquet"))["train"]
    examples = test.select(range(min(arguments.sentences, len(test))))
    source, target = arguments.languages
    found = {f"{row['method']} {row['heads']}": translate(row["runs"][0]["model"], examples[source]) for row in rows}
    for number, example in enumerate(examples):
        print(f"\n{source:10} {example[source]}\n{target:10} {example[target]}")
        for name, texts in found.items():
            print(f"{name:10} {texts[number]}")


if __name__ == "__main__":
    main()
