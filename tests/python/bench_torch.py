"""The peer run for `make bench`: the same training step in torch and PEFT on this machine.

    bench_torch.py CONFIG.json [--rows 8,32] [--threads N] [--seconds 3]

Prints one line of JSON per measurement: `full` (every weight trained), `lora` (adapters of rank 8
on the official targets, the frozen vision tower computed in each step) and `lora-kept` (the
features of the frozen tower computed once). A step is forward, backward and AdamW with clipping,
without dropout. `tokens_per_second` counts all positions.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time

import peft
import torch
from peft import LoraConfig, get_peft_model

import make_golden
import reference

LENGTH, LABELS, IMAGE_AT, RANK = 110, 26, 3, 8


def batch(config, rows):
    generator = torch.Generator().manual_seed(7)
    start, queries = config["visual"]["image_start_id"], config["visual"]["n_queries"]
    ids = torch.randint(0, 255, (rows, LENGTH), generator=generator)
    ids[:, IMAGE_AT] = start
    ids[:, IMAGE_AT + 1 : IMAGE_AT + 1 + queries] = start + 2
    ids[:, IMAGE_AT + 1 + queries] = start + 1
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    for row in range(rows):
        mask[row, LENGTH - row % 3 :] = 0
    labels = torch.full((rows, LENGTH), reference.IGNORED)
    labels[:, -3 - LABELS : -3] = ids[:, -3 - LABELS : -3]
    side = config["visual"]["image_size"]
    pixels = torch.randn(rows, 3, side, side, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixels": pixels}


class KeptFeatures(torch.nn.Module):
    """Stands in for a frozen vision tower whose output is known."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, _pixels):
        return self.features


def model_for(name, config, inputs):
    """The model to call, and its trained tensors."""
    model = reference.with_weights(config, make_golden.random_weights(config, seed=1)).train()
    if name == "full":
        return model, list(model.parameters())
    if name == "lora-kept":
        with torch.no_grad():
            features = model.transformer.visual(inputs["pixels"])
        model.transformer.visual = KeptFeatures(features)
    targets = ["c_attn", "attn.c_proj", "w1", "w2"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=16, lora_dropout=0.0,
                      target_modules=targets)
    wrapped = get_peft_model(model, lora).train()
    return wrapped.base_model.model, [p for p in wrapped.parameters() if p.requires_grad]


def measure(name, config, rows, seconds):
    inputs = batch(config, rows)
    model, trained = model_for(name, config, inputs)
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step():
        optimizer.zero_grad()
        _logits, loss = model(**inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    for _warm_up in range(3):
        step()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    median = statistics.median(times)
    return {"name": name, "rows": rows, "steps": len(times), "ms": 1e3 * median,
            "images_per_second": rows / median, "tokens_per_second": rows * LENGTH / median}


def report(name, rows, options):
    """Measures in this process, which did nothing before, so that the peak is its own."""
    torch.set_num_threads(options.threads)
    with open(options.config) as file:
        config = json.load(file)
    found = measure(name, config, rows, options.seconds)
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {"torch": torch.__version__, "peft": peft.__version__}
    print(json.dumps(found | {"threads": options.threads} | versions), flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("config")
    parser.add_argument("--rows", default="8,32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    for name in ("full", "lora", "lora-kept"):
        for rows in map(int, options.rows.split(",")):
            context = multiprocessing.get_context("fork")
            process = context.Process(target=report, args=(name, rows, options))
            process.start()
            process.join()
            if process.exitcode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
