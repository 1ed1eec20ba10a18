"""Makes the golden files that golden A does not cover, with reference.py and real PEFT.

    make_golden.py FOLDER             the files of tests/goldens
    make_golden.py FOLDER two-heads   one too large to keep: two heads in the resampler

The keys are those of golden A: `config` in the metadata, `w.*`, `input_ids`, `labels`,
`attention_mask`, `visual`, `logits`, `eval_logits`, `loss`, `g.*`. Pictures are normalised
pixels in the file (`pixels`, f32, in the order of their `<img>` tokens).
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import check_golden
import reference
from check_golden import Golden

IMAGE_START, PAD = 44, 47
CONFIG = {
    "vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "kv_channels": 8, "intermediate_size": 48, "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000, "seq_length": 2048, "use_dynamic_ntk": True, "use_logn_attn": True,
    "visual": {"image_size": 40, "patch_size": 5, "width": 24, "layers": 2, "heads": 2,
               "mlp_ratio": 1.7, "output_dim": 32, "image_start_id": IMAGE_START, "n_queries": 16},
}


def configuration(visual=None, **changes):
    return CONFIG | changes | {"visual": CONFIG["visual"] | (visual or {})}


def random_weights(config, seed):
    """Every tensor random, norms around 1 and biases too, so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in reference.QwenVl(config).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("bias"):
            weights[name] = 0.2 * noise
        elif value.dim() == 1:
            weights[name] = 1.0 + 0.2 * noise
        elif name.endswith(("wte.weight", "query", "pos_embed", "positional_embedding")):
            weights[name] = 0.5 * noise
        else:
            # Logits of about 1, because they are compared by absolute differences.
            gain = 0.2 if name == "lm_head.weight" else 1.2
            weights[name] = gain * noise / (value[0].numel() ** 0.5)
    return weights


def sample(config, *parts):
    """Ids and labels of one sample: "image" is a picture's place, a list is text, an answer is
    a list in a tuple."""
    ids, labels = [], []
    for part in parts:
        if part == "image":
            slots = [IMAGE_START + 2] * config["visual"]["n_queries"]
            new, kept = [IMAGE_START, *slots, IMAGE_START + 1], False
        else:
            kept = isinstance(part, tuple)
            new = part[0] if kept else part
        ids += new
        labels += new if kept else [reference.IGNORED] * len(new)
    return ids, labels


def batch(samples):
    """Padded on the right."""
    length = max(len(ids) for ids, _labels in samples)
    fill = lambda values, filler: values + [filler] * (length - len(values))
    return {
        "input_ids": torch.tensor([fill(ids, PAD) for ids, _labels in samples]),
        "labels": torch.tensor([fill(labels, reference.IGNORED) for _ids, labels in samples]),
        "attention_mask": torch.tensor(
            [fill([1] * len(ids), 0) for ids, _labels in samples], dtype=torch.uint8),
    }


def random_pixels(config, count, seed):
    side = config["visual"]["image_size"]
    generator = torch.Generator().manual_seed(seed)
    # Smooth shapes with some noise, in about the range of normalised pictures.
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth + 0.3 * torch.randn(count, 3, side, side, generator=generator)


def results(golden):
    """What the reference computes from weights and inputs of a golden."""
    pixels = golden.tensors["pixels"]
    model, inputs = golden.model(), golden.inputs(pixels)
    with torch.no_grad():
        found = {"visual": model.transformer.visual(pixels), "eval_logits": model(**inputs)[0]}
    logits, loss = model.train()(**inputs)
    loss.backward()
    found |= {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    return found | {f"g.{name}": p.grad for name, p in model.named_parameters()}


def lora_results(golden):
    # PEFT draws A from torch's global generator.
    torch.manual_seed(7)
    inputs = golden.inputs(golden.tensors["pixels"])
    first, gradients, losses, norms, last = check_golden.lora_run(golden, inputs)
    found = {"lora_losses": losses, "lora_grad_norms": norms}
    for prefix, tensors in (("lora0.", first), ("lorag.", gradients), ("lora8.", last)):
        found |= {prefix + name: value for name, value in tensors.items()}
    return found


def bf16_logits(golden):
    """The same model with all weights in bf16, rounded as torch rounds on a CPU."""
    model = golden.model().bfloat16().train()
    with torch.no_grad():
        return model(**golden.inputs(golden.tensors["pixels"]))[0]


def save(path, golden):
    tensors = {key: value.contiguous() for key, value in golden.tensors.items()}
    save_file(tensors, path, metadata=golden.metadata)
    print(f"{path.name}: {path.stat().st_size} bytes, loss {golden.tensors['loss'].item():.6f}")


def make(path, config, samples, seed, lora=False):
    golden = Golden.__new__(Golden)
    golden.path, golden.config = path, config
    golden.metadata = {"config": json.dumps(config), "reference": f"torch {torch.__version__}"}
    weights = random_weights(config, seed)
    golden.tensors = {f"w.{name}": value for name, value in weights.items()} | batch(samples)
    pictures = int((golden.tensors["input_ids"] == IMAGE_START).sum())
    golden.tensors["pixels"] = random_pixels(config, pictures, seed + 1)
    if lora:
        golden.metadata["lora"] = "r=4 alpha=16 dropout=0 targets c_attn attn.c_proj w1 w2"
        golden.metadata["adamw"] = ("lr=1e-2 betas=(0.9,0.95) eps=1e-8 weight_decay=0.1 "
                                    "clip=1.0 steps=8")
        golden.tensors |= lora_results(golden)
    golden.tensors |= results(golden)
    golden.tensors["bf16_logits"] = bf16_logits(golden)
    save(path, golden)


def make_rms_norm(path):
    """A model of nothing but the last norm, in bf16: no blocks, and a head that is the identity.
    `early` is the mistake of multiplying by the weight before the rounding."""
    visual = {"image_size": 8, "patch_size": 4, "width": 8, "layers": 1, "heads": 1,
              "output_dim": 64, "n_queries": 4}
    config = configuration(visual=visual, vocab_size=64, hidden_size=64, num_hidden_layers=0,
                           kv_channels=16)
    weights = random_weights(config, seed=5)
    weights["lm_head.weight"] = torch.eye(64)
    weights = {name: value.bfloat16() for name, value in weights.items()}
    model = reference.with_weights(config, {k: v.float() for k, v in weights.items()}).bfloat16()
    ids = torch.arange(IMAGE_START)[None]
    with torch.no_grad():
        logits = model(ids)[0]
    wide = weights["transformer.wte.weight"][ids].float()
    rate = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + config["layer_norm_epsilon"])
    early = (wide * rate * weights["transformer.ln_f.weight"].float()).bfloat16()
    tensors = {f"w.{name}": value for name, value in weights.items()}
    tensors |= {"input_ids": ids, "logits": logits, "early": early}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    print(f"{path.name}: {path.stat().st_size} bytes, "
          f"{int((logits != early).sum())} of {logits.numel()} values show the order")


def make_two_heads(path):
    """The resampler has a head for each 128 channels."""
    visual = {"width": 48, "output_dim": 256, "mlp_ratio": 1.69}
    config = configuration(visual=visual, hidden_size=256, kv_channels=64)
    make(path, config, [sample(config, [1], "image", [5, 6], ([10, 20, 30],))], seed=51)


def make_kept(folder):
    question, answer = [5, 6, 7, 8, 9], ([10, 20, 30, 40, 15, 43],)
    config = configuration()
    make(folder / "batch.safetensors", config, [
        sample(config, [1, 2], "image", [3, 4], "image", question, answer, [11, 12], ([13, 14],)),
        sample(config, [1], "image", answer),
        sample(config, question, ([41, 42, 43],)),
    ], seed=11, lora=True)
    config = configuration(visual={"layers": 1}, seq_length=64)
    text = [(7 * i) % IMAGE_START for i in range(130)]
    make(folder / "long.safetensors", config,
         [sample(config, [1, 2], "image", text[:60], answer, text[60:], answer)], seed=21)
    odd = {"n_queries": 64, "width": 32, "heads": 4, "layers": 1}
    config = configuration(visual=odd, num_hidden_layers=1)
    make(folder / "no_kv_proj.safetensors", config,
         [sample(config, [1], "image", question, answer)], seed=31)
    make_rms_norm(folder / "rms_norm_bf16.safetensors")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [folder]:
            make_kept(Path(folder))
        case [folder, "two-heads"]:
            make_two_heads(Path(folder) / "two_heads.safetensors")
        case _:
            sys.exit(__doc__)
