"""Rewrites MODEL.safetensors as two PyTorch shards with an index, as the official release ships.

usage: save_bin.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

folder = Path(sys.argv[1])
tensors = load_file(folder / "model.safetensors")
names = sorted(tensors)
shards = {"pytorch_model-00001-of-00002.bin": names[::2],
          "pytorch_model-00002-of-00002.bin": names[1::2]}
for shard, members in shards.items():
    torch.save({name: tensors[name] for name in members}, folder / shard)
index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
         "weight_map": {name: shard for shard, members in shards.items() for name in members}}
(folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
torch.save({"optimizer": {}}, folder / "training_args.bin")
(folder / "model.safetensors").unlink()
