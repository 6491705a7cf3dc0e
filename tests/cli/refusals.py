"""What a refusal looks like: one line on stderr and nothing else."""


def refused(capsys, message: str, status: int, expected: int = 2) -> None:
    """Check what a command that ended with this status wrote since `capsys` was last read."""
    captured = capsys.readouterr()
    # A progress bar may stand on the same line before it.
    lines = [line for line in captured.err.splitlines() if "hf-nas: " in line]
    assert status == expected and len(lines) == 1 and message in lines[0], captured.err
    assert "Traceback" not in captured.err and captured.out == ""
