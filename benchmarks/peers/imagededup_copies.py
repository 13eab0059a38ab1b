"""imagededup's defaults over a folder: pairs by PHash, DHash and by the CNN method, with the weights that are given."""

import json
import sys
from collections.abc import Mapping

import timm
import torch
from imagededup.methods import CNN, DHash, PHash
from imagededup.utils import CustomModel


def pairs(found: Mapping[str, list[str]]) -> list[list[str]]:
    return sorted({(min(a, b), max(a, b)) for a, others in found.items() for b in others})


def main(folder: str, weights: str) -> None:
    network = timm.create_model("mobilenetv2_100", num_classes=0, checkpoint_path=weights).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    cnn = CNN(verbose=False, model_config=CustomModel("mobilenetv2", network, transform))
    with torch.inference_mode():
        found = {
            "PHash, 10 bits": PHash(verbose=False).find_duplicates(folder),
            "DHash, 10 bits": DHash(verbose=False).find_duplicates(folder),
            "CNN, 0.9": cnn.find_duplicates(folder),
        }
    print(json.dumps({name: pairs(copies) for name, copies in found.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
