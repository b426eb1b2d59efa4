"""Diffusion for the peer: DDIM steps, the training loss, AdamW with an exponential moving average.

Schedules are float64 tables, rounded to float32 where they are used. Formulas: Ho et al. 2020,
Song et al. 2021 (DDIM), Nichol & Dhariwal 2021 (learned variance, the hybrid loss).
"""

import math

import torch
from torch.nn import functional as F


class Schedule:
    """Linear betas; with `timesteps`, respaced to those of the 1000."""

    def __init__(self, timesteps=None, device="cpu"):
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.timesteps = torch.arange(1000) if timesteps is None else timesteps.long().cpu()
        a = kept[self.timesteps]
        before = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
        betas = 1 - a / before
        variance = betas * (1 - before) / (1 - a)
        clipped = torch.cat([variance[1:2], variance[1:]])
        tables = {
            "signal": a.sqrt(),
            "noise": (1 - a).sqrt(),
            "signal_before": before.sqrt(),
            "noise_before": (1 - before).sqrt(),
            "x0_from_x": (1 / a).sqrt(),
            "x0_from_eps": (1 / a - 1).sqrt(),
            "mean_from_x0": betas * before.sqrt() / (1 - a),
            "mean_from_x": (1 - before) * (1 - betas).sqrt() / (1 - a),
            "log_variance_max": betas.log(),
            "log_variance_min": clipped.log(),
        }
        self.tables = {name: values.float().to(device) for name, values in tables.items()}

    def at(self, name, t):
        """[B, 1, 1, 1] for t [B]."""
        return self.tables[name][t].view(-1, 1, 1, 1)

    def ddim(self, x, eps, i):
        """One deterministic step (eta 0), from entry i [B] of the schedule."""
        x0 = self.at("x0_from_x", i) * x - self.at("x0_from_eps", i) * eps
        return self.at("signal_before", i) * x0 + self.at("noise_before", i) * eps

    def q_sample(self, x0, noise, t):
        return self.at("signal", t) * x0 + self.at("noise", t) * noise


def normal_kl(mean1, log1, mean2, log2):
    return 0.5 * (log2 - log1 - 1 + torch.exp(log1 - log2) + (mean1 - mean2) ** 2 * torch.exp(-log2))


def decoder_log_likelihood(x, mean, log_deviation):
    """Of 8-bit data in [-1, 1], by differences of an approximate normal distribution function."""

    def cdf(v):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    inverse = torch.exp(-log_deviation)
    above = cdf(inverse * (x - mean + 1 / 255))
    below = cdf(inverse * (x - mean - 1 / 255))
    inside = torch.log((above - below).clamp(min=1e-12))
    lowest, highest = torch.log(above.clamp(min=1e-12)), torch.log((1 - below).clamp(min=1e-12))
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inside))


def hybrid_loss(schedule, out, x0, x_t, noise, t):
    """mse and vb (bits) per image: [B] each. The bound sees the predicted noise as a constant."""
    eps, v = out.chunk(2, dim=1)
    mse = F.mse_loss(eps, noise, reduction="none").flatten(1).mean(1)
    s = schedule
    guess = s.at("x0_from_x", t) * x_t - s.at("x0_from_eps", t) * eps.detach()
    mean = s.at("mean_from_x0", t) * guess + s.at("mean_from_x", t) * x_t
    truth = s.at("mean_from_x0", t) * x0 + s.at("mean_from_x", t) * x_t
    low, high = s.at("log_variance_min", t), s.at("log_variance_max", t)
    fraction = (v + 1) / 2
    log_variance = fraction * high + (1 - fraction) * low
    kl = normal_kl(truth, low, mean, log_variance)
    likelihood = -decoder_log_likelihood(x0, mean, 0.5 * log_variance)
    vb = torch.where((t == 0).view(-1, 1, 1, 1), likelihood, kl)
    return mse, vb.flatten(1).mean(1) / math.log(2)


class Trainer:
    """fp32 weights, products under autocast where `autocast` is a type; gradients add up over
    micro-batches."""

    def __init__(self, model, schedule, autocast=None, lr=1e-4, weight_decay=0.0, decay=0.9999):
        self.model, self.schedule, self.autocast, self.decay = model, schedule, autocast, decay
        self.parameters = list(model.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        on_gpu = self.parameters[0].is_cuda
        fastest = {"fused": True} if on_gpu else {"foreach": True}
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, **fastest
        )

    def accumulate(self, x0, t, y, noise, share=1.0):
        """Forward and backward of a micro-batch that is this share of the batch. Labels are
        dropped by the caller. Gives the model's output and both parts of the loss."""
        x_t = self.schedule.q_sample(x0, noise, t)
        if self.autocast is None:
            out = self.model(x_t, t, y)
        else:
            with torch.autocast(x0.device.type, self.autocast):
                out = self.model(x_t, t, y)
        mse, vb = hybrid_loss(self.schedule, out.float(), x0, x_t, noise, t)
        ((mse + vb).mean() * share).backward()
        return out, mse, vb

    @torch.no_grad()
    def apply(self):
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        torch._foreach_mul_(self.ema, self.decay)
        torch._foreach_add_(self.ema, self.parameters, alpha=1 - self.decay)
