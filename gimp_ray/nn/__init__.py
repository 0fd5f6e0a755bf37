"""Networks and losses that several methods share, in PyTorch alone: no files, no store, no Ray."""
