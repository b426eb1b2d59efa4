"""Whole models: a forward, a sampling step, a training step, a decode.

Labels are those of test/native/model_bench.cc, sizes too.
"""

import copy
import json
import os

import torch

from torch_check import default_fixtures
from torch_diffusion import Schedule, Trainer
from torch_model import Config, DiT, Vae, randomise, to_bytes
from torch_timing import Bench, captured, dtype_of, use_tf32

MODELS = {
    "xl": ("dit-xl2", Config()),
    "tiny": ("dit-tiny", Config(depth=2, hidden=144, heads=2, latent=8, classes=10)),
}
LARGEST_COMPILED = 256  # pixels: compiling takes a minute for each size
# (images, pixels of an image): rows of a forward are twice the images, for guidance.
SAMPLING = {"xl": [(32, 256), (1, 256), (8, 512)], "tiny": [(2, 64), (1, 64)]}
# Images of a step, of a micro-batch: the largest that fits.
TRAINING = {"xl": (256, (64, 32, 16)), "tiny": (4, (2,))}
DECODES = {"xl": [(1, 256), (1, 512), (8, 256)], "tiny": [(1, 64)]}


def made(bench, kind, make):
    """A model with random weights, made where it runs: 675 million numbers take no time there."""
    with torch.device(bench.device):
        return randomise(make()).to(kind)


def compile_blocks(bench, model):
    """Each block under torch.compile: one kernel for all, since they have the same code."""
    model = copy.copy(model)
    model._modules = dict(model._modules)
    model._modules["blocks"] = torch.nn.ModuleList(
        bench.compile(block, tuned=True) for block in model.blocks
    )
    return model


def variants(bench: Bench, model, whole=False):
    yield "eager", model
    if bench.compiled and 8 * model.config.latent <= LARGEST_COMPILED:
        yield "compiled blocks", compile_blocks(bench, model)
    if whole:
        yield "compiled model", bench.compile(model, tuned=True)


@torch.no_grad()
def sampling(bench: Bench, scale, dtypes, whole=False):
    name, base = MODELS[scale]
    for dtype in dtypes:
        use_tf32(dtype == "tf32")
        for images, pixels in SAMPLING[scale]:
            rows, kind = 2 * images, dtype_of(dtype)
            shape = f"{rows}x{pixels}px {dtype}"
            labels = f"{name}.forward {shape}", f"{name}.step {shape}"
            if not any(bench.wants(label) for label in labels):
                continue
            config = Config(**{**base.__dict__, "latent": pixels // 8})
            model = made(bench, kind, lambda: DiT(config)).eval()
            flops = 2.0 * rows * model.multiply_adds()
            side = (config.channels, config.latent, config.latent)
            x = torch.randn(images, *side, device=bench.device)
            doubled = torch.cat([x, x]).to(kind)
            t = torch.full((rows,), 500, device=bench.device)
            y = torch.arange(rows, device=bench.device) % config.classes
            y[images:] = config.classes
            schedule = Schedule(torch.arange(0, 1000, 40), bench.device)
            step = torch.full((images,), 12, device=bench.device)

            def advance(run):
                # As DiT.guided does, through a forward that may be compiled.
                out = run(torch.cat([x, x]).to(kind), t, y).float()
                with_class, without = out[:, : config.channels].chunk(2)
                eps = without.clone()
                eps[:, :3] += 4.0 * (with_class[:, :3] - without[:, :3])
                eps[:, 3:] = with_class[:, 3:]
                return schedule.ddim(x, eps, step)

            for variant, run in variants(bench, model, whole):
                for graph in (False, True):
                    if graph and not bench.clock.on_gpu:
                        continue
                    how = f"{variant}, graph" if graph else variant
                    bench.measure(
                        labels[0], how, lambda run=run: run(doubled, t, y), flops, graph=graph
                    )
                    bench.measure(
                        labels[1], how, lambda run=run: advance(run), flops, graph=graph
                    )
            del model
            free(bench)


def training(bench: Bench, scale, dtypes):
    """Forward, backward, AdamW and the moving average of one step, over micro-batches."""
    name, config = MODELS[scale]
    total, micros = TRAINING[scale]
    for dtype in dtypes:
        use_tf32(dtype == "tf32")
        label = f"{name}.train {total}x{8 * config.latent}px {dtype}"
        if not bench.wants(label):
            continue
        base = made(bench, torch.float32, lambda: DiT(config))
        flops = 6.0 * total * base.multiply_adds()
        x = torch.randn(total, config.channels, config.latent, config.latent, device=bench.device)
        y = torch.arange(total, device=bench.device) % config.classes
        for variant, model in variants(bench, base):
            autocast = torch.bfloat16 if dtype == "bf16" else None
            trainer = Trainer(base, Schedule(device=bench.device), autocast)
            trainer.model = model

            def step(micro):
                for begin in range(0, total, micro):
                    part = slice(begin, begin + micro)
                    t = torch.randint(0, 1000, (micro,), device=bench.device)
                    drop = torch.rand(micro, device=bench.device) < 0.1
                    labels = torch.where(drop, config.classes, y[part])
                    noise = torch.randn_like(x[part])
                    trainer.accumulate(x[part], t, labels, noise, micro / total)
                trainer.apply()

            for micro in micros:
                how = f"{variant}, {micro} at once"
                if bench.measure(label, how, lambda micro=micro: step(micro), flops):
                    break
                trainer.optimiser.zero_grad(set_to_none=True)
                free(bench)
            del trainer
        del base, model
        free(bench)


class Decoding:
    """A decode, launched or replayed from a CUDA graph."""

    def __init__(self, bench, run, latents, kind, graph=False):
        self.run, self.latents, self.wants_graph, self.graph = run, latents, graph, None
        z = torch.empty(latents.shape, device=bench.device, dtype=kind)
        self.z = z.contiguous(memory_format=torch.channels_last)

    def work(self):
        self.bytes = to_bytes(self.run(self.z))

    def __call__(self):
        self.z.copy_(self.latents, non_blocking=True)
        if not self.wants_graph:
            self.work()
        elif self.graph is None:
            self.graph = captured(self.work)
        if self.graph is not None:
            self.graph.replay()
        return self.bytes.cpu()


@torch.no_grad()
def decoding(bench: Bench, scale, dtypes):
    """From latents on the host to bytes on the host, channels-last."""
    with open(os.path.join(default_fixtures(), "full_size/sd_vae_config.json")) as file:
        config = json.load(file)
    name = "vae"
    if scale == "tiny":
        name = "vae-tiny"
        config = {**config, "block_out_channels": [32, 32, 32, 32], "norm_num_groups": 8}
    for dtype in dtypes:
        use_tf32(dtype == "tf32")
        kind = dtype_of(dtype)
        vae = made(bench, kind, lambda: Vae(config))
        vae = vae.to(memory_format=torch.channels_last).eval()
        runs = [("eager", vae)]
        if bench.compiled:
            runs.append(("compiled", bench.compile(vae, tuned=True)))
        for images, pixels in DECODES[scale]:
            label = f"{name}.decode {images}x{pixels}px {dtype}"
            latents = torch.randn(images, 4, pixels // 8, pixels // 8)
            if bench.clock.on_gpu:
                latents = latents.pin_memory()
            for variant, run in runs:
                bench.measure(label, variant, Decoding(bench, run, latents, kind), wall=True)
                if bench.clock.on_gpu:
                    replayed = Decoding(bench, run, latents, kind, graph=True)
                    bench.measure(label, f"{variant}, graph", replayed, wall=True)
        del vae, runs
        free(bench)


def free(bench):
    if bench.compiled and hasattr(torch, "compiler"):
        torch.compiler.reset()
    if bench.clock.on_gpu:
        torch.cuda.empty_cache()
