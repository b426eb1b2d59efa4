"""Checks the peer against the fixtures (test/fixtures), fp32: a peer that is wrong is not timed."""

import contextlib
import json
import os
import struct

import torch

from torch_diffusion import Schedule, Trainer
from torch_model import Config, DiT, Vae, to_bytes

TYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8}


def default_fixtures():
    here = os.path.dirname(os.path.abspath(__file__))
    return os.environ.get("DIT_FIXTURES") or os.path.join(here, "../../test/fixtures")


def read_safetensors(path, device="cpu"):
    """{name: tensor}: u64 length of the header, JSON header, data."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype = TYPES[entry["dtype"]]
        if begin == end:
            values = torch.empty(entry["shape"], dtype=dtype)
        else:
            values = torch.frombuffer(data[begin:end], dtype=dtype).reshape(entry["shape"])
        tensors[name] = values.to(device)
    return tensors


class Checker:
    def __init__(self, folder, device):
        self.folder, self.device = folder, device
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)
        self.passed, self.failures = 0, []

    def read(self, name):
        return read_safetensors(os.path.join(self.folder, name), self.device)

    def json(self, name):
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return json.load(file)

    def model(self, name):
        model = DiT(Config.read(self.json(f"dit_tiny_forward/{name}/config.json")))
        model = model.to(self.device)
        model.load_state_dict(self.read(f"dit_tiny_forward/{name}/model.safetensors"))
        return model

    def expect(self, file, tensor, got, want, keep=None):
        """Within the manifest's tolerances; `keep` chooses the elements that are compared."""
        entry = self.manifest[file]["tensors"][tensor]
        got, want = got.detach().double().flatten(), want.double().flatten()
        if keep is not None:
            got, want = got[keep], want[keep]
        relative = ((got - want).norm() / want.norm()).item()
        largest = (got - want).abs().max().item()
        if relative <= entry["tol_rel_l2"] and largest <= entry["tol_max_abs"]:
            self.passed += 1
        else:  # not a number is wrong, too
            self.failures.append(
                f"{file} {tensor}: rel L2 {relative:.2e} ({entry['tol_rel_l2']:.0e}), "
                f"max abs {largest:.2e} ({entry['tol_max_abs']:.0e})"
            )


@torch.no_grad()
def check_forward(checker):
    for name in ("a96h4", "b144h2", "micro24"):
        file = f"dit_tiny_forward/{name}/forward.safetensors"
        f, model = checker.read(file), checker.model(name)
        for out, t in (("out", "t"), ("out_t_fractional", "t_fractional")):
            checker.expect(file, out, model(f["x"], f[t], f["y"]), f[out])
        half = len(f["cfg.x"]) // 2
        for out, scale, channels in (
            ("cfg.out_scale4", 4.0, 3),
            ("cfg.out_scale1p5", 1.5, 3),
            ("cfg_all.out_scale4", 4.0, 4),
        ):
            got = model.guided(f["cfg.x"][:half], f["cfg.t"], f["cfg.y"], scale, channels)
            # Both halves have the guided noise; each keeps its own rest.
            whole = f[out].clone()
            whole[:half] = got
            whole[half:, :channels] = got[:, :channels]
            checker.expect(file, out, whole, f[out])


@torch.no_grad()
def check_sampling(checker):
    file = "sampling_trajectory/a96h4_ddim_cfg4_eta0.safetensors"
    f, model = checker.read(file), checker.model("a96h4")
    schedule = Schedule(f["timestep_map"], checker.device)
    n = len(f["x_init"]) // 2
    x = f["x_init"][:n]
    for step in reversed(range(len(f["timestep_map"]))):
        t = torch.full((2 * n,), int(f["timestep_map"][step]), device=checker.device)
        out = model.guided(x, t, f["y"], checker.manifest[file]["cfg_scale"])
        index = torch.full((n,), step, device=checker.device)
        x = schedule.ddim(x, out[:, : model.config.channels], index)
    checker.expect(file, "final", x, f["final"])


def check_gradients(checker):
    for name in ("micro24", "a96h4"):
        file = f"dit_tiny_training/{name}_grads.safetensors"
        f, model = checker.read(file), checker.model(name)
        trainer = Trainer(model, Schedule(device=checker.device))
        y = torch.where(f["force_drop_ids"] == 1, model.config.classes, f["y"])
        out, mse, vb = trainer.accumulate(f["x_start"], f["t"], y, f["noise"])
        checker.expect(file, "model_output", out, f["model_output"])
        checker.expect(file, "terms.mse", mse, f["terms.mse"])
        checker.expect(file, "terms.vb", vb, f["terms.vb"])
        for parameter, value in model.named_parameters():
            if f"grad.{parameter}" in f:
                checker.expect(file, f"grad.{parameter}", value.grad, f[f"grad.{parameter}"])


def without_key_bias(name, value):
    """Softmax cancels the middle third of a qkv bias: its gradient is rounding noise, which Adam
    turns into steps of any size up to the learning rate."""
    if not name.endswith("qkv.bias"):
        return None
    third = value.numel() // 3
    index = torch.arange(value.numel(), device=value.device)
    return (index < third) | (index >= 2 * third)


def check_optimiser(checker):
    for decay in ("0", "0.01"):
        file = f"dit_tiny_training/micro24_adamw_wd{decay}.safetensors"
        f, model = checker.read(file), checker.model("micro24")
        entry = checker.manifest[file]
        trainer = Trainer(
            model,
            Schedule(device=checker.device),
            lr=entry["lr"],
            weight_decay=entry["weight_decay"],
            decay=0.9,
        )
        for step in (1, 2, 3):
            part = {key: f[f"step{step}.{key}"] for key in ("x_start", "t", "noise")}
            drop = f[f"step{step}.force_drop_ids"] == 1
            y = torch.where(drop, model.config.classes, f[f"step{step}.y"])
            _, mse, vb = trainer.accumulate(part["x_start"], part["t"], y, part["noise"])
            checker.expect(file, f"step{step}.loss", (mse + vb).mean(), f[f"step{step}.loss"])
            trainer.apply()
            named = [(name, value) for name, value in model.named_parameters()]
            for (name, value), ema in zip(named, trainer.ema):
                for key, got in ((f"param.{name}", value), (f"ema0.9.{name}", ema)):
                    if f"step{step}.{key}" in f:
                        keep = without_key_bias(name, value)
                        tensor = f"step{step}.{key}"
                        checker.expect(file, tensor, got, f[tensor], keep)


@torch.no_grad()
def check_decoder(checker):
    file = "vae_tiny/io.safetensors"
    f = checker.read(file)
    vae = Vae(checker.json("vae_tiny/config.json")).to(checker.device)
    weights = checker.read("vae_tiny/modern/diffusion_pytorch_model.safetensors")
    vae.load_state_dict({name: weights[name] for name in vae.state_dict()})
    decoded = vae(f["z"])
    checker.expect(file, "decoded", decoded, f["decoded"])
    if "decoded_u8_nhwc" in f:
        off = (to_bytes(decoded).int() - f["decoded_u8_nhwc"].int()).abs().max().item()
        if off <= 1:  # rounding may carry a value over the edge of a step
            checker.passed += 1
        else:
            checker.failures.append(f"{file} decoded_u8_nhwc: off by {off}")


def plain_attention():
    """Fused kernels may multiply fp32 in TF32, whatever is allowed."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # PyTorch 1.x
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def check(device, folder=None):
    """Runs all checks in true fp32; gives (passed, failures)."""
    checker = Checker(folder or default_fixtures(), device)
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32 = cudnn.allow_tf32 = False
    parts = (check_forward, check_sampling, check_gradients, check_optimiser, check_decoder)
    try:
        with plain_attention():
            for part in parts:
                part(checker)
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before
    return checker.passed, checker.failures
