"""Qwen-VL in plain torch: what the tests compare the Rust model with.

It shares no code with the trainer, reads the same folders, and has the parameter names of the
official release, so that PEFT finds the official targets in it. Golden A, made by the official
code, is what it is itself held to (check_golden.py).

Shapes: B rows, L positions, D width, H heads, K channels of a head, N pictures.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

IGNORED = -100
VISUAL_EPSILON = 1e-6


class RmsNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        # Rounded to the number format of x before the weight comes in.
        wide = x.float()
        rate = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (wide * rate).type_as(x) * self.weight


def rotary_angles(config, length, training):
    """Angles (L, K); outside of training the base grows with the length (dynamic NTK)."""
    base, channels = config.get("rotary_emb_base", 10000), config["kv_channels"]
    trained = config.get("seq_length", 2048)
    if not training and config.get("use_dynamic_ntk", True):
        stretch = 2 ** math.ceil(math.log2(length / trained) + 1) - 1
        base = base * max(stretch, 1) ** (channels / (channels - 2))
    frequencies = 1.0 / (base ** (torch.arange(0, channels, 2).float() / channels))
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.cat((angles, angles), dim=-1)


def rotate(x, angles):
    """Turns (B, L, H, K) by pairs (i, i + K/2), in f32."""
    wide, half = x.float(), x.shape[-1] // 2
    turned = torch.cat((-wide[..., half:], wide[..., :half]), dim=-1)
    angles = angles[None, :, None, :]
    return (wide * angles.cos() + turned * angles.sin()).type_as(x)


def log_n_factors(config, length):
    """log of the position to the base of the trained length, 1 up to it."""
    trained = config.get("seq_length", 2048)
    factors = [math.log(i, trained) if trained < i else 1.0 for i in range(1, length + 1)]
    return torch.tensor(factors)[None, :, None, None]


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.config = config
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, mask):
        rows, length, width = x.shape
        heads = (rows, length, self.config["num_attention_heads"], self.config["kv_channels"])
        q, k, v = (part.view(heads) for part in self.c_attn(x).split(width, dim=2))
        angles = rotary_angles(self.config, length, self.training)
        q, k = rotate(q, angles), rotate(k, angles)
        if not self.training and self.config.get("use_logn_attn", True):
            q = q * log_n_factors(self.config, length).type_as(q)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(heads[3])
        least = torch.finfo(scores.dtype).min
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        scores = torch.where(seen, scores, torch.tensor(least, dtype=scores.dtype))
        padding = (1.0 - mask[:, None, None, :].to(scores.dtype)) * least
        mixed = torch.softmax(scores + padding, dim=-1) @ v
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, width))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"] // 2
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(width, inner, bias=False)
        self.c_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        norm = (config["hidden_size"], config.get("layer_norm_epsilon", 1e-6))
        self.ln_1 = RmsNorm(*norm)
        self.attn = Attention(config)
        self.ln_2 = RmsNorm(*norm)
        self.mlp = Mlp(config)

    def forward(self, x, mask):
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


def positions(table, places):
    """A square table of vectors, stretched to a square of `places`."""
    rows, width = table.shape
    if rows == places:
        return table
    old, new = math.isqrt(rows), math.isqrt(places)
    grid = table.float().reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(places, width).to(table.dtype)


class VisualAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        pictures, patches, width = x.shape
        channels = width // self.heads
        # Query, key and value lie side by side within each head.
        mixed = self.in_proj(x).view(pictures, patches, self.heads, 3 * channels)
        q, k, v = (part.transpose(1, 2) for part in mixed.split(channels, dim=-1))
        scores = (q / math.sqrt(channels)) @ k.transpose(2, 3)
        y = torch.softmax(scores, dim=-1) @ v
        return self.out_proj(y.transpose(1, 2).reshape(pictures, patches, width))


class VisualMlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.c_fc = nn.Linear(width, inner)
        self.c_proj = nn.Linear(inner, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class VisualBlock(nn.Module):
    def __init__(self, visual):
        super().__init__()
        width = visual["width"]
        self.ln_1 = nn.LayerNorm(width, eps=VISUAL_EPSILON)
        self.attn = VisualAttention(width, visual["heads"])
        self.ln_2 = nn.LayerNorm(width, eps=VISUAL_EPSILON)
        self.mlp = VisualMlp(width, int(width * visual["mlp_ratio"]))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisualBlocks(nn.Module):
    def __init__(self, visual):
        super().__init__()
        self.resblocks = nn.ModuleList(VisualBlock(visual) for _ in range(visual["layers"]))

    def forward(self, x):
        for block in self.resblocks:
            x = block(x)
        return x


class Resampler(nn.Module):
    def __init__(self, visual):
        super().__init__()
        width, queries = visual["output_dim"], visual.get("n_queries", 256)
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.pos_embed = nn.Parameter(torch.zeros(queries, width))
        if visual["width"] != width:
            self.kv_proj = nn.Linear(visual["width"], width, bias=False)
        else:
            self.kv_proj = nn.Identity()
        self.attn = nn.MultiheadAttention(width, max(width // 128, 1), batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=VISUAL_EPSILON)
        self.ln_kv = nn.LayerNorm(width, eps=VISUAL_EPSILON)

    def forward(self, x):
        values = self.ln_kv(self.kv_proj(x))
        keys = values + positions(self.pos_embed, x.shape[1])
        query = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        return self.attn(query, keys, values, need_weights=False)[0]


class Visual(nn.Module):
    def __init__(self, visual):
        super().__init__()
        width, out, patch = visual["width"], visual["output_dim"], visual["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        table = torch.zeros(visual.get("n_queries", 256), width)
        self.positional_embedding = nn.Parameter(table)
        self.ln_pre = nn.LayerNorm(width, eps=VISUAL_EPSILON)
        self.transformer = VisualBlocks(visual)
        self.attn_pool = Resampler(visual)
        self.ln_post = nn.LayerNorm(out, eps=VISUAL_EPSILON)
        self.proj = nn.Parameter(torch.zeros(out, out))

    def forward(self, pixels):
        """Pixels (N, 3, side, side) -> features (N, queries, D)."""
        x = self.conv1(pixels.to(self.proj.dtype)).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + positions(self.positional_embedding, x.shape[1]))
        return self.ln_post(self.attn_pool(self.transformer(x))) @ self.proj


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.image_start = config["visual"]["image_start_id"]
        self.wte = nn.Embedding(config["vocab_size"], width)
        self.h = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.ln_f = RmsNorm(width, config.get("layer_norm_epsilon", 1e-6))
        self.visual = Visual(config["visual"])

    def forward(self, input_ids, mask, pixels):
        x = self.wte(input_ids)
        if pixels is not None:
            x = self.with_features(x, input_ids, self.visual(pixels))
        for block in self.h:
            x = block(x, mask)
        return self.ln_f(x)

    def with_features(self, x, input_ids, features):
        """Overwrites what is between each `<img>` and `</img>`, in reading order."""
        starts = (input_ids == self.image_start).nonzero().tolist()
        ends = (input_ids == self.image_start + 1).nonzero().tolist()
        assert len(starts) == len(ends) == len(features), "pictures and their places differ"
        x = x.clone()
        for (row, start), (end_row, end), feature in zip(starts, ends, features):
            assert row == end_row and end - start - 1 == len(feature), "broken picture place"
            x[row, start + 1 : end] = feature
        return x


class QwenVl(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, input_ids, attention_mask=None, labels=None, pixels=None):
        """Logits (B, L, vocabulary), and the mean loss of the labels if they are given."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.lm_head(self.transformer(input_ids, mask, pixels))
        if labels is None:
            return logits, None
        shifted = logits[:, :-1].reshape(-1, logits.shape[-1])
        return logits, F.cross_entropy(shifted, labels[:, 1:].reshape(-1), ignore_index=IGNORED)

    def prepare_inputs_for_generation(self, input_ids, **_others):
        """PEFT wants it of a model with the task type CAUSAL_LM; it is never called here."""
        return {"input_ids": input_ids}


def with_weights(config, weights):
    """A model in evaluation mode; a missing, unknown or misshapen tensor is an error."""
    model = QwenVl(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def from_folder(folder):
    """The model of a folder with `config.json` and `*.safetensors` or `*.bin`, in f32."""
    folder = Path(folder)
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(path))
    if not weights:
        for path in sorted(folder.glob("*.bin")):
            weights.update(torch.load(path, map_location="cpu"))
    config = json.loads((folder / "config.json").read_text())
    return with_weights(config, {name: value.float() for name, value in weights.items()})
