"""imagededup's CNN search over vectors that are given: seconds, megabytes at the most, and pairs."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from imagededup.methods import CNN
from imagededup.utils import CustomModel


def main(path: str, threshold: str) -> None:
    vectors = np.load(path).astype(np.float32)
    names = [str(number) for number in range(len(vectors))]
    cnn = CNN(verbose=False, model_config=CustomModel("none", torch.nn.Identity(), lambda image: image))
    start = time.perf_counter()
    found = cnn.find_duplicates(
        encoding_map=dict(zip(names, vectors, strict=True)), min_similarity_threshold=float(threshold)
    )
    seconds = time.perf_counter() - start
    pairs = sum(len(others) for others in found.values()) // 2
    memory = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
    print(json.dumps({"seconds": seconds, "megabytes": memory, "pairs": pairs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
