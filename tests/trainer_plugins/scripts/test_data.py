"""Tables without rows are refused alike, whatever their type."""

import pytest

from trainer_plugins.scripts.data import read_table


@pytest.mark.parametrize("name, content", [("empty.csv", "sentence,label\n"), ("empty.json", "")])
def test_a_table_without_rows(name: str, content: str, tmp_path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{name}' has no rows; give a file that does"):
        read_table(path, str(tmp_path / "cache"))
