"""The data that the flags of an example script name: a data set on the Hub, or files, and reading them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from trainer_plugins.scripts.arguments import FILE_TYPES, DataFileArguments


ROLES = ("train", "validation", "test")
# What `datasets` calls the first column of a CSV file whose header has too few names.
_UNNAMED = "__index_level_0__"


def read_table(path: Path, cache_dir: str | None = None) -> Dataset:
    """One file: CSV, JSON with one row a line, or Parquet.

    Args:
        path: of the file, whose ending says its kind.
        cache_dir: where data sets are cached; by default where `datasets` does.

    Raises:
        ValueError: if the file is not of that kind.
    """
    kind = FILE_TYPES[path.suffix.lower()]
    # A text that reads "null" or "NA" is a text.
    options = {"keep_default_na": False} if kind == "csv" else {}
    try:
        table = load_dataset(kind, data_files={"train": str(path)}, split="train", cache_dir=cache_dir, **options)
    except (DatasetGenerationError, ValueError, StopIteration) as error:
        is_empty = "corresponds to no data" in str(error) or isinstance(error.__cause__ or error, StopIteration)
        if is_empty and kind != "parquet":
            raise ValueError(f"'{path}' has no rows; give a file that does.") from error
        raise unreadable(path, error) from error
    if _UNNAMED in table.column_names:
        names = ", ".join(name for name in table.column_names if name != _UNNAMED)
        raise ValueError(
            f"'{path}' has more values in its first row than names in its header ({names}); write texts with commas "
            "in quotes."
        )
    return table


def unreadable(path: Path, error: Exception) -> ValueError:
    """The sentence about a file that could not be read."""
    lines = str(error.__cause__ or error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    kind = FILE_TYPES[path.suffix.lower()].upper()
    return ValueError(f"'{path}' cannot be read as {kind} ({reason}); correct the file.")


def read_splits(
    arguments: DataFileArguments,
    cache_dir: str | None = None,
    token: str | None = None,
    read: Callable[[Path, str | None], Dataset] = read_table,
) -> dict[str, Dataset]:
    """All splits that there are, as they are: of the Hub, of `--data_dir`, or of the files named one by one.

    Args:
        arguments: which of these.
        cache_dir: where data sets are cached; by default where `datasets` does.
        token: Hub token.
        read: reads a file.

    Raises:
        ValueError: if a file cannot be read, or the folder has none.
    """
    if arguments.dataset_name is not None:
        hub = (arguments.dataset_name, arguments.dataset_config_name)
        return dict(load_dataset(*hub, cache_dir=cache_dir, token=token))
    if arguments.data_dir is not None:
        files = files_in(arguments.data_dir, ROLES)
    else:
        files = {role: getattr(arguments, f"{role}_file") for role in ROLES}
    return {role: read(Path(path), cache_dir) for role, path in files.items() if path is not None}


def files_in(folder: str, names: Sequence[str]) -> dict[str, Path]:
    """The Parquet files of the splits in a folder, by name.

    Raises:
        ValueError: if there is none.
    """
    paths = {name: Path(folder) / f"{name}.parquet" for name in names}
    files = {name: path for name, path in paths.items() if path.is_file()}
    if not files:
        wanted = ", ".join(path.name for path in paths.values())
        raise ValueError(f"--data_dir '{folder}' has none of {wanted}; give a folder that does.")
    return files


def missing_split(role: str, splits: Iterable[str], wanted: str | None = None) -> ValueError:
    """The sentence about data without a split that the run needs.

    Args:
        role: one of [`ROLES`].
        splits: that there are.
        wanted: names of the split, where it is not that of its role.
    """
    return ValueError(
        f"The run needs a {wanted or role} split and the data have only {', '.join(splits) or 'none'}; add it, for "
        f"example with --{role}_file, or leave out what needs it."
    )


def check_not_empty(split: str, dataset: Dataset) -> None:
    """Refuse a split without rows.

    Raises:
        ValueError: naming the split.
    """
    if len(dataset) == 0:
        raise ValueError(f"The {split} split has no rows; give one that does.")
