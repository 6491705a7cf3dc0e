"""What flags of several commands mean."""

import pytest
import torch

from hf_nas.cli.flags import get_device


def test_the_device_by_default_and_by_name() -> None:
    assert get_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert get_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device 'meta' cannot be used here"):
        get_device("meta")
