"""Data on the host: prepared once, then read as batches of uint8 images. Never imports jax."""
