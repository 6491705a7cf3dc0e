"""What the example scripts have in common, from the command line to the model card."""
