"""What every test needs: no network, no threads that fight for the cores."""

import os


# Read by the libraries when they are imported, so it comes first.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402


torch.set_num_threads(1)
