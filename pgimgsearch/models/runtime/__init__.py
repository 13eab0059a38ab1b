"""How an encoder runs: torch or ONNX Runtime, in batches, on CPUs and GPUs."""
