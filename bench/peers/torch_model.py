"""A DiT (Peebles & Xie 2022) and the decoder of Stable Diffusion's VAE in PyTorch: the peer that
dit-native is timed beside. Written for this from the paper and the documentation of the fixtures;
parameters have the names of the checkpoints.

B images, T tokens, D channels of a token, H heads.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    depth: int = 28
    hidden: int = 1152
    heads: int = 16
    patch: int = 2
    latent: int = 32
    channels: int = 4
    classes: int = 1000
    mlp_ratio: float = 4.0
    learn_sigma: bool = True

    @property
    def tokens(self):
        return (self.latent // self.patch) ** 2

    @property
    def out_channels(self):
        return self.channels * (2 if self.learn_sigma else 1)

    @staticmethod
    def read(json):
        """From the config.json of a fixture."""
        return Config(
            depth=json["depth"],
            hidden=json["hidden_size"],
            heads=json["num_heads"],
            patch=json["patch_size"],
            latent=json["input_size"][0],
            channels=json["in_channels"],
            classes=json["num_classes"],
            mlp_ratio=json["mlp_ratio"],
            learn_sigma=json["learn_sigma"],
        )


def attend(q, k, v):
    """softmax(q k^T / sqrt(d)) v over [B, H, T, d]."""
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v)
    # PyTorch 1.x, which only ever checks the fixtures.
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1) @ v


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.fc1 = nn.Linear(hidden, inner)
        self.fc2 = nn.Linear(inner, hidden)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """adaLN-Zero (section 3.2): shift, scale and gate of both branches from the condition."""

    def __init__(self, c):
        super().__init__()
        self.norm = nn.LayerNorm(c.hidden, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(c.hidden, c.heads)
        self.mlp = Mlp(c.hidden, int(c.hidden * c.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.hidden, 6 * c.hidden))

    def forward(self, x, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.LayerNorm(c.hidden, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(c.hidden, c.patch**2 * c.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.hidden, 2 * c.hidden))

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).chunk(2, 1)
        return self.linear(modulate(self.norm(x), shift, scale))


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t):
        index = torch.arange(128, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * index / 128)
        sinusoid = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
        return self.mlp(sinusoid.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding_table = nn.Embedding(c.classes + 1, c.hidden)  # the last row: no class

    def forward(self, y):
        return self.embedding_table(y)


class PatchEmbedder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv2d(c.channels, c.hidden, c.patch, stride=c.patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def position_table(c):
    """[1, T, D]: [sin(col w) | cos(col w) | sin(row w) | cos(row w)], w_k = 10000^(-k / (D/4))."""
    side, quarter = c.latent // c.patch, c.hidden // 4
    w = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * w
    of_axis = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)  # [side, D/2]
    columns = of_axis[None, :, :].expand(side, side, -1)
    rows = of_axis[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side * side, c.hidden).float()


class DiT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.x_embedder = PatchEmbedder(c)
        self.t_embedder = TimestepEmbedder(c.hidden)
        self.y_embedder = LabelEmbedder(c)
        self.register_buffer("pos_embed", position_table(c))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.final_layer = FinalLayer(c)

    def forward(self, x, t, y):
        """x [B, C, h, w], t [B], y [B] -> [B, out channels, h, w]."""
        c = self.config
        tokens = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        side, p = c.latent // c.patch, c.patch
        out = self.final_layer(tokens, condition).view(-1, side, side, p, p, c.out_channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(-1, c.out_channels, c.latent, c.latent)

    def guided(self, x, t, y, scale, channels=3):
        """Classifier-free guidance of the first channels. x [B, ..], t and y [2B]: the second half
        of y has the null class. Gives [B, ..]: the guided noise, the rest as the condition has it.
        """
        with_class, without = self(torch.cat([x, x]), t, y).chunk(2)
        eps = without[:, :channels] + scale * (with_class[:, :channels] - without[:, :channels])
        return torch.cat([eps, with_class[:, channels:]], dim=1)

    def multiply_adds(self, tokens=None):
        """Of one image's forward."""
        c, t = self.config, tokens or self.config.tokens
        inner = int(c.hidden * c.mlp_ratio)
        block = t * (4 * c.hidden**2 + 2 * c.hidden * inner) + 2 * t * t * c.hidden
        return c.depth * (block + 6 * c.hidden**2)


# ---- the autoencoder's decoder ------------------------------------------------------------------


class Resnet(nn.Module):
    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class PixelAttention(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)
        y = attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](y.squeeze(1)).transpose(1, 2).reshape(b, c, h, w)


class Middle(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Upsampler(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UpBlock(nn.Module):
    def __init__(self, inputs, outputs, layers, groups, upsample):
        super().__init__()
        sizes = [inputs] + [outputs] * layers
        self.resnets = nn.ModuleList(Resnet(size, outputs, groups) for size in sizes)
        self.upsamplers = nn.ModuleList([Upsampler(outputs)] if upsample else [])

    def forward(self, x):
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class Decoder(nn.Module):
    def __init__(self, json):
        super().__init__()
        sizes, groups = json["block_out_channels"][::-1], json["norm_num_groups"]
        self.conv_in = nn.Conv2d(json["latent_channels"], sizes[0], 3, padding=1)
        self.mid_block = Middle(sizes[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, size, json["layers_per_block"], groups, i + 1 < len(sizes))
            for i, (before, size) in enumerate(zip([sizes[0], *sizes], sizes))
        )
        self.conv_norm_out = nn.GroupNorm(groups, sizes[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(sizes[-1], json["out_channels"], 3, padding=1)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Vae(nn.Module):
    """The decoding half of AutoencoderKL, by its config.json."""

    def __init__(self, json):
        super().__init__()
        latent = json["latent_channels"]
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.decoder = Decoder(json)

    def forward(self, z):
        """[B, latent channels, h, w] in the VAE's own scale -> [B, 3, 8h, 8w], nominally -1 .. 1."""
        return self.decoder(self.post_quant_conv(z))


def to_bytes(images):
    """[B, 3, H, W] -> [B, H, W, 3]."""
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@torch.no_grad()
def randomise(model, seed=1):
    """Normal weights that keep the size of activations, and no gate at zero."""
    generators = {}
    for name, parameter in model.named_parameters():
        where = parameter.device
        if where not in generators:
            generators[where] = torch.Generator(where).manual_seed(seed)
        values = torch.empty_like(parameter).normal_(generator=generators[where])
        if parameter.dim() > 1:
            values *= (parameter.numel() / parameter.shape[0]) ** -0.5
        else:  # a bias, or the weight of a norm
            values = values * 0.02 + (1 if name.endswith("weight") else 0)
        parameter.copy_(values)
    return model
