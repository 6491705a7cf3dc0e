"""Runs of an example script that a benchmark makes once: what they depend on is recorded beside their results.

A run that is finished is not repeated, so a killed benchmark continues; one that was made with other flags is set
aside and made again.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_nas.files import write_json
from hf_nas.run_files import differences, read_object


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GLUE = EXAMPLES / "text-classification" / "run_glue.py"
TRANSLATION = EXAMPLES / "translation" / "run_translation.py"
# In the folder of a run: what its results depend on.
RECORD = "benchmark.json"


def add_run_arguments(parser: argparse.ArgumentParser, *, from_scratch: bool = False) -> None:
    """What every benchmark that runs an example script asks for, but its tasks and seeds."""
    if not from_scratch:
        parser.add_argument("--model", required=True, help="pretrained model, a folder or a name on the Hub")
    parser.add_argument("--data_root", type=Path, required=True, help="folder with a folder of Parquet files a task")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and results.json go")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "default"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="train and evaluate in mixed precision")


def run_script(
    arguments: argparse.Namespace, folder: Path, flags: str, *, data: Path, model: Path | str | None, seed: int,
    script: Path = GLUE, last: str = "eval_results.json", after: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Run an example script, unless it has been run with these flags and to the end.

    Args:
        arguments: of the benchmark, as [`add_run_arguments`] has them.
        folder: of the run; what the script prints goes to log.txt there.
        flags: of the script, but those for which there is an argument here.
        data: folder with the files of the task.
        model: that is trained; None where the flags make a new one.
        seed: of the run.
        script: that is run.
        last: the file that the run writes last.
        after: folders of the runs whose results this one starts from.
    """
    flags += f" --seed {seed}" + (" --bf16" if arguments.bf16 else "")
    given = {} if model is None else {"model": str(model)}
    keep_same(folder, {"flags": flags, **given, "data": str(data.resolve())}, after)
    if (folder / last).exists():
        return
    device = ["--use_cpu"] if arguments.device == "cpu" else []
    start = [] if model is None else ["--model_name_or_path", str(model)]
    command = [sys.executable, str(script), *flags.split(), *device, *start]
    run_command([*command, "--data_dir", str(data), "--output_dir", str(folder)], folder, arguments.threads)


def keep_same(folder: Path, facts: Mapping[str, object], after: Sequence[Path] = ()) -> None:
    """Record what the contents of a folder depend on; what depends on something else is set aside.

    Args:
        folder: of a run.
        facts: on it.
        after: folders of the runs whose results this one starts from.
    """
    record = dict(facts)
    for path in after:
        record |= {f"{name} of {path.name}": value for name, value in read_object(path / RECORD).items()}
    earlier = read_object(folder / RECORD)
    if folder.exists() and earlier != record:
        _set_aside(folder, earlier, record)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, record)


def _set_aside(folder: Path, earlier: Mapping[str, object], record: Mapping[str, object]) -> None:
    """Rename the folder of a run with other flags, which may have taken hours."""
    names = (folder.with_name(f"{folder.name}.other-{number}") for number in itertools.count(1))
    target = next(name for name in names if not name.exists())
    folder.rename(target)
    changed = "; ".join(differences(earlier, record).values())
    print(f"'{folder}' holds a run with other flags ({changed}), which is in '{target}' now.")


def run_command(command: list[str], folder: Path, threads: int) -> None:
    """Run a script whose output folder this is; what it prints goes to log.txt there."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation if there is more than one value."""
    mean = f"{statistics.mean(values):6.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean}      "
