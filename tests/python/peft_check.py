"""The PEFT side of tests/peft.rs.

    peft_check.py make FOLDER
        A small base with random weights, as safetensors (FOLDER/base) and as the PyTorch shards of
        the official release (FOLDER/base-bin); inputs; and adapters that PEFT itself saves
        (FOLDER/adapter-*), each with the logits that PEFT gets from it (logits.safetensors).
    peft_check.py apply BASE ADAPTER INPUTS OUT
        Logits of BASE with ADAPTER, loaded by PEFT.

Both print the version of PEFT.
"""

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import make_golden
import reference

OFFICIAL_TARGETS = ["c_attn", "attn.c_proj", "w1", "w2"]
# Two heads in the resampler, and an MLP of odd width in the vision tower.
CONFIG = make_golden.configuration(
    visual={"image_size": 56, "patch_size": 7, "width": 48, "mlp_ratio": 1.69, "output_dim": 256},
    hidden_size=256, kv_channels=64, intermediate_size=192)

# What newer versions can do with the same tensor names, and qvl cannot.
BEYOND_LORA = {
    "beyond-alpha": {"alpha_pattern": {"c_attn": 8}},
    "beyond-rank": {"rank_pattern": {"c_attn": 4}},
    "beyond-layers": {"layers_to_transform": [1], "layers_pattern": "h"},
    "beyond-rslora": {"use_rslora": True},
    "beyond-pissa": {"init_lora_weights": "pissa"},
    "beyond-bias": {"bias": "lora_only"},
    "beyond-modules": {"modules_to_save": ["wte", "lm_head"]},
}


def write_base(folder, config, weights):
    """The two layouts of a base: f32 safetensors, and the bf16 shards of torch.save."""
    for name in ("base", "base-bin"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config, indent=2))
    halves = {name: value.bfloat16() for name, value in weights.items()}
    # The same numbers in both, so that both give the same logits.
    weights = {name: value.float() for name, value in halves.items()}
    save_file(weights, folder / "base" / "model.safetensors")
    names = sorted(weights)
    shards = [names[0::2], names[1::2]]
    index = {}
    for i, shard in enumerate(shards, 1):
        file = f"pytorch_model-{i:05}-of-{len(shards):05}.bin"
        torch.save({name: halves[name] for name in shard}, folder / "base-bin" / file)
        index |= {name: file for name in shard}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "base-bin" / "pytorch_model.bin.index.json").write_text(text)


def logits(model, inputs):
    keys = ("input_ids", "attention_mask", "pixels")
    with torch.no_grad():
        return model.eval()(**{key: inputs[key] for key in keys})[0].contiguous()


def save_adapter(folder, base, inputs, targets, safe, **settings):
    model = reference.from_folder(base)
    plain = logits(model, inputs)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=24, lora_dropout=0.05,
                        target_modules=targets, **settings)
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data = 0.05 * torch.randn(value.shape, generator=generator)
    wrapped.save_pretrained(str(folder), safe_serialization=safe)
    adapted = logits(wrapped.base_model.model, inputs)
    save_file({"plain": plain, "logits": adapted}, folder / "logits.safetensors")


def make(folder):
    folder = Path(folder)
    weights = make_golden.random_weights(CONFIG, seed=41)
    write_base(folder, CONFIG, weights)
    samples = [
        make_golden.sample(CONFIG, [1, 2], "image", [5, 6, 7], ([10, 20, 30, 40],)),
        make_golden.sample(CONFIG, [9, 8, 7], ([11, 12],), "image", ([3, 1, 4, 1, 5],)),
    ]
    inputs = make_golden.batch(samples)
    inputs["pixels"] = make_golden.random_pixels(CONFIG, 2, seed=42)
    save_file(inputs, folder / "inputs.safetensors")
    base = folder / "base"
    save_adapter(folder / "adapter-bin", base, inputs, OFFICIAL_TARGETS, safe=False)
    save_adapter(folder / "adapter-safetensors", base, inputs, OFFICIAL_TARGETS, safe=True)
    # `mlp.c_proj` alone would hit the vision tower too.
    paths = [f"transformer.h.{i}.mlp.c_proj" for i in range(CONFIG["num_hidden_layers"])]
    save_adapter(folder / "adapter-every-layer", base, inputs, OFFICIAL_TARGETS + paths, safe=True)
    if peft.__version__ != "0.5.0":
        for name, settings in BEYOND_LORA.items():
            save_adapter(folder / name, base, inputs, OFFICIAL_TARGETS, safe=True, **settings)


def apply(base, adapter, inputs, out):
    model = reference.from_folder(base)
    inputs = load_file(inputs)
    plain = logits(model, inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(model, adapter)
    # PEFT only warns about keys that it misses.
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        sys.exit(missing[0])
    save_file({"plain": plain, "logits": logits(wrapped.base_model.model, inputs)}, out)


def main(arguments):
    commands = {"make": (make, 1), "apply": (apply, 4)}
    name, *rest = arguments or [""]
    if name not in commands or len(rest) != commands[name][1]:
        sys.exit(__doc__)
    commands[name][0](*rest)
    print(f"PEFT {peft.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
