"""Replays golden files with reference.py and real PEFT; exits with 1 if a difference is too large.

    check_golden.py FILE.safetensors ...

Prints one line of JSON per file: the largest difference of each layer. Pictures named in the
metadata are read beside the file, and resized by Pillow.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open

import reference

ALLOWED = {"pixels": 0.0, "visual": 5e-6, "logits": 2e-6, "eval_logits": 2e-6, "loss": 2e-6,
           "gradients": 1e-5, "lora_gradients": 1e-5, "lora_losses": 2e-6, "lora_norms": 2e-6,
           "lora_weights": 3e-5}  # AdamW turns rounding of near-zero gradients into steps
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


class Golden:
    def __init__(self, path):
        self.path = Path(path)
        with safe_open(str(path), framework="pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
        self.config = json.loads(self.metadata["config"])

    def below(self, prefix):
        """The tensors whose names begin with `prefix`, without it."""
        found = self.tensors.items()
        return {k[len(prefix):]: v for k, v in found if k.startswith(prefix)}

    def model(self):
        return reference.with_weights(self.config, self.below("w."))

    def inputs(self, pixels):
        keys = ("input_ids", "attention_mask", "labels")
        return {key: self.tensors[key].long() for key in keys} | {"pixels": pixels}


def pixels_of(golden):
    """The stored pixels, or those of the pictures named in the metadata."""
    if "pixels" in golden.tensors:
        return golden.tensors["pixels"]
    side = golden.config["visual"]["image_size"]
    pictures = []
    for name in json.loads(golden.metadata["images"]):
        picture = Image.open(golden.path.parent / name).convert("RGB")
        picture = picture.resize((side, side), Image.BICUBIC)
        values = (np.asarray(picture).astype(np.float32) / np.float32(255) - MEAN) / STD
        pictures.append(torch.from_numpy(values.transpose(2, 0, 1).copy()))
    return torch.stack(pictures)


def largest(found, expected):
    return (found.float() - expected.float()).abs().max().item()


def worst_share(found, expected):
    """Largest difference as a share of each tensor's largest value."""
    shares = []
    for name, value in expected.items():
        size = value.abs().max().item()
        shares.append(largest(found[name], value) / (size or 1.0))
    return max(shares)


def numbers(text):
    """`r=4 alpha=16 ...` -> {"r": "4", "alpha": "16"}."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def with_lora(model, text):
    """Wraps the model with PEFT, as the metadata of a golden describes it."""
    lora = numbers(text)
    config = LoraConfig(task_type="CAUSAL_LM", r=int(lora["r"]), lora_alpha=int(lora["alpha"]),
                        lora_dropout=0.0, target_modules=["c_attn", "attn.c_proj", "w1", "w2"])
    return get_peft_model(model, config)


def lora_run(golden, inputs, start=None):
    """Steps of AdamW on the adapters: tensors, losses, norms and first gradients."""
    settings = numbers(golden.metadata["adamw"])
    model = with_lora(golden.model(), golden.metadata["lora"]).train()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if start is not None:
        assert named.keys() == start.keys(), "PEFT chose other modules than the golden has"
        for name, value in start.items():
            named[name].data.copy_(value)
    first = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=float(settings["lr"]), betas=(0.9, 0.95),
                                  eps=1e-8, weight_decay=float(settings["weight_decay"]))
    losses, norms, gradients = [], [], None
    for _step in range(int(settings["steps"])):
        optimizer.zero_grad()
        _logits, loss = model.base_model.model(**inputs)
        loss.backward()
        if gradients is None:
            gradients = {name: p.grad.clone() for name, p in named.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), float(settings["clip"])).item())
        losses.append(loss.item())
        optimizer.step()
    last = {name: p.detach() for name, p in named.items()}
    return first, gradients, torch.tensor(losses), torch.tensor(norms), last


def differences(golden):
    pixels = pixels_of(golden)
    found = {}
    if "pixels_sha256_f32_le" in golden.metadata:
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        found["pixels"] = float(digest != golden.metadata["pixels_sha256_f32_le"])
    model, inputs = golden.model(), golden.inputs(pixels)
    with torch.no_grad():
        found["visual"] = largest(model.transformer.visual(pixels), golden.tensors["visual"])
        found["eval_logits"] = largest(model(**inputs)[0], golden.tensors["eval_logits"])
    logits, loss = model.train()(**inputs)
    loss.backward()
    found["logits"] = largest(logits.detach(), golden.tensors["logits"])
    found["loss"] = abs(loss.item() - golden.tensors["loss"].item())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    found["gradients"] = worst_share(gradients, golden.below("g."))
    if "lora" in golden.metadata:
        run = lora_run(golden, inputs, golden.below("lora0."))
        _first, gradients, losses, norms, last = run
        found["lora_gradients"] = worst_share(gradients, golden.below("lorag."))
        found["lora_losses"] = largest(losses, golden.tensors["lora_losses"])
        found["lora_norms"] = largest(norms, golden.tensors["lora_grad_norms"])
        expected = golden.below("lora8.")
        found["lora_weights"] = max(largest(last[name], v) for name, v in expected.items())
    return found


def main(paths):
    holds = bool(paths)
    for path in paths:
        found = differences(Golden(path))
        broken = [layer for layer, value in found.items() if not value <= ALLOWED[layer]]
        print(json.dumps({"file": Path(path).name, "differences": found, "broken": broken}))
        holds &= not broken
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
