"""Single operations of a DiT and of the VAE, as cuBLAS, cuDNN and torch.compile do them.

Labels are those of test/native/ops_bench.cc, sizes too.
"""

import contextlib
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from torch_timing import Bench, dtype_of, use_tf32

WEIGHTS = 12  # of a product, taken in turn as the blocks of a model do: none stays in a cache


@dataclass
class Scale:
    """The sizes of one set of benchmarks."""

    hidden: int
    heads: int
    tokens: int
    rows: tuple  # images at once
    attention: list  # (rows, tokens, heads, head dim)
    adamw: int
    conv: list  # (height, inputs, outputs, kernel, residual)
    group_norm: list = field(default_factory=list)  # (height, channels)
    product: int = 8192
    copy: int = 1 << 30  # bytes


SCALES = {
    "xl": Scale(
        hidden=1152,
        heads=16,
        tokens=256,
        rows=(64, 2),
        attention=[(64, 256, 16, 72), (16, 1024, 16, 72), (64, 256, 16, 64), (16, 1024, 16, 64)],
        adamw=1 << 26,
        conv=[(64, 512, 512, 3, True), (128, 512, 256, 3, False), (256, 128, 128, 3, True)],
        group_norm=[(256, 128), (128, 256)],
    ),
    "tiny": Scale(
        hidden=144,
        heads=2,
        tokens=16,
        rows=(4, 2),
        attention=[(4, 16, 2, 72), (2, 64, 2, 64)],
        adamw=1 << 12,
        conv=[(8, 32, 32, 3, True), (8, 32, 64, 3, False)],
        group_norm=[(8, 32)],
        product=256,
        copy=1 << 20,
    ),
}


def ceilings(bench: Bench, scale):
    """What the machine gives at best: the measure of all other rates."""
    n = scale.product
    for dtype in ("bf16", "tf32"):
        use_tf32(dtype == "tf32")
        a = torch.randn(n, n, device=bench.device).to(dtype_of(dtype))
        b = torch.randn(n, n, device=bench.device).to(dtype_of(dtype))
        out = torch.empty_like(a)
        label = f"ceiling.product {n}x{n}x{n} {dtype}"
        bench.measure(label, "cuBLAS", lambda: torch.mm(a, b, out=out), flops=2.0 * n**3)
    source = torch.randn(scale.copy // 4, device=bench.device)
    target = torch.empty_like(source)
    label = f"ceiling.copy {scale.copy} bytes"
    bench.measure(label, "copy", lambda: target.copy_(source), traffic=2.0 * scale.copy)


def both(bench, label, function, flops, traffic=0.0):
    """Eager and compiled; either as a CUDA graph, so that launches cost nothing."""
    bench.measure(label, "eager", function, flops, traffic, graph=True)
    if bench.compiled:
        bench.measure(label, "compiled", bench.compile(function), flops, traffic, graph=True)


def linears(bench: Bench, scale, dtype, rows):
    c, tokens, kind = scale.hidden, scale.tokens, dtype_of(dtype)
    use_tf32(dtype == "tf32")
    for name, n, k in (
        ("qkv", 3 * c, c),
        ("proj", c, c),
        ("fc1", 4 * c, c),
        ("fc2", c, 4 * c),
    ):
        label = f"linear.{name} {rows * tokens}x{n}x{k} {dtype}"
        if not bench.wants(label):
            continue
        make = lambda *shape: torch.randn(*shape, device=bench.device)  # noqa: E731
        x, bias = make(rows, tokens, k).to(kind), make(n).to(kind)
        weights = [(make(n, k) * k**-0.5).to(kind) for _ in range(WEIGHTS)]
        gate, residual = make(rows, 1, n).to(kind), make(rows, tokens, n).to(kind)
        flops = 2.0 * rows * tokens * n * k
        if name == "qkv":
            function = lambda w: F.linear(x, w, bias)  # noqa: E731
        elif name == "fc1":
            function = lambda w: F.gelu(F.linear(x, w, bias), approximate="tanh")  # noqa: E731
        else:
            function = lambda w: residual + gate * F.linear(x, w, bias)  # noqa: E731
        measure_in_turn(bench, label, "eager", function, weights, flops)
        if bench.compiled:
            measure_in_turn(bench, label, "compiled", bench.compile(function), weights, flops)


def measure_in_turn(bench, label, variant, function, weights, flops):
    """The time of one product, all weights one after another."""

    def all_of_them():
        for w in weights:
            function(w)

    bench.measure(label, variant, all_of_them, flops, graph=True, units=len(weights))


def linear_backwards(bench: Bench, scale, dtype):
    """dX, dW += and db +=; of fc2 with the derivative of the GELU before it."""
    c, m, kind = scale.hidden, scale.rows[0] * scale.tokens, dtype_of(dtype)
    use_tf32(dtype == "tf32")
    for name, n, k in (("qkv", 3 * c, c), ("proj", c, c), ("fc1", 4 * c, c), ("fc2", c, 4 * c)):
        label = f"linear.{name}.backward {m}x{n}x{k} {dtype}"
        if not bench.wants(label):
            continue
        x, dy = (torch.randn(m, size, device=bench.device).to(kind) for size in (k, n))
        w = (torch.randn(n, k, device=bench.device) * k**-0.5).to(kind)
        dw = torch.zeros(n, k, device=bench.device)
        db = torch.zeros(n, device=bench.device)
        before = torch.randn(m, k, device=bench.device).to(kind) if name == "fc2" else None

        def backward(x=x, dy=dy, w=w, dw=dw, db=db, before=before):
            if before is not None:  # the forward kept the pre-activation alone
                x = F.gelu(before, approximate="tanh")
            dx = dy @ w
            if before is not None:
                dx = torch.ops.aten.gelu_backward(dx, before, approximate="tanh")
            dw.add_(dy.t() @ x)
            db.add_(dy.sum(0))
            return dx

        both(bench, label, backward, 4.0 * m * n * k)


def attention(bench: Bench, scale, dtype):
    kind = dtype_of(dtype)
    use_tf32(dtype == "tf32")
    for rows, tokens, heads, d in scale.attention:
        shape = f"{rows}x{tokens}x{heads}x{d} {dtype}"
        product = 2.0 * rows * heads * tokens * tokens * d
        if not (bench.wants(f"attention.forward {shape}") or
                bench.wants(f"attention.backward {shape}")):  # fmt: skip
            continue
        # As a model has them: slices of one projection.
        qkv = torch.randn(rows, tokens, 3, heads, d, device=bench.device).to(kind)
        q, k, v = (part.requires_grad_() for part in qkv.permute(2, 0, 3, 1, 4).unbind(0))
        dy = torch.randn(rows, tokens, heads, d, device=bench.device).to(kind).transpose(1, 2)
        for variant, choose in backends():

            def forward():
                with choose(), torch.no_grad():
                    return F.scaled_dot_product_attention(q, k, v)

            label = f"attention.forward {shape}"
            bench.measure(label, variant, forward, 2 * product, graph=True)
            label = f"attention.backward {shape}"
            try:
                with choose():
                    y = F.scaled_dot_product_attention(q, k, v)
            except RuntimeError as error:
                bench.skip(label, variant, error)
                continue

            def backward():
                return torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)

            bench.measure(label, variant, backward, 5 * product)


def backends():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {
        "sdpa": None,  # PyTorch's own choice
        "sdpa cudnn": "CUDNN_ATTENTION",
        "sdpa flash": "FLASH_ATTENTION",
        "sdpa efficient": "EFFICIENT_ATTENTION",
    }
    for variant, name in names.items():
        if name is None:
            yield variant, contextlib.nullcontext
        elif hasattr(SDPBackend, name):
            yield variant, lambda name=name: sdpa_kernel(getattr(SDPBackend, name))


def norms(bench: Bench, scale, dtype):
    c, tokens, rows, kind = scale.hidden, scale.tokens, scale.rows[0], dtype_of(dtype)
    x = torch.randn(rows, tokens, c, device=bench.device).to(kind)
    shift, scale_by = (torch.randn(rows, 1, c, device=bench.device).to(kind) for _ in range(2))
    label = f"layerNormModulate {rows}x{tokens}x{c} {dtype}"

    def run():
        return F.layer_norm(x, (c,), eps=1e-6) * (1 + scale_by) + shift

    both(bench, label, run, 0, 2.0 * x.numel() * x.element_size())

    for height, channels in scale.group_norm:
        image = torch.randn(1, channels, height, height, device=bench.device).to(kind)
        image = image.contiguous(memory_format=torch.channels_last)
        gamma, beta = (torch.randn(channels, device=bench.device).to(kind) for _ in range(2))
        label = f"groupNormSilu 1x{height}x{height}x{channels} {dtype}"

        def norm(image=image, gamma=gamma, beta=beta, groups=min(32, channels // 4)):
            return F.silu(F.group_norm(image, groups, gamma, beta, 1e-6))

        # Read twice, for the statistics and for the values, and written.
        both(bench, label, norm, 0, 3.0 * image.numel() * image.element_size())


def convolutions(bench: Bench, scale, dtype):
    """Batch 1, channels-last, as the decoder runs."""
    kind = dtype_of(dtype)
    use_tf32(dtype == "tf32")
    for height, inputs, outputs, kernel, with_residual in scale.conv:
        label = f"conv2d 1x{height}x{height}x{inputs}to{outputs}k{kernel} {dtype}"
        last = {"memory_format": torch.channels_last}
        x = torch.randn(1, inputs, height, height, device=bench.device).to(kind).contiguous(**last)
        w = torch.randn(outputs, inputs, kernel, kernel, device=bench.device)
        w = (w * (inputs * kernel**2) ** -0.5).to(kind).contiguous(**last)
        bias = torch.randn(outputs, device=bench.device).to(kind)
        residual = torch.randn(1, outputs, height, height, device=bench.device).to(kind)
        residual = residual.contiguous(**last)

        def run(x=x, w=w, bias=bias, residual=residual, add=with_residual, kernel=kernel):
            y = F.conv2d(x, w, bias, padding=kernel // 2)
            return residual + y if add else y

        both(bench, label, run, 2.0 * height**2 * inputs * outputs * kernel**2)


def optimiser(bench: Bench, scale):
    """AdamW, the moving average and the bf16 copy of so many parameters."""
    label = f"adamW {scale.adamw} fp32"
    if not bench.wants(label):
        return
    parameter = torch.randn(scale.adamw, device=bench.device)
    parameter.grad = torch.randn(scale.adamw, device=bench.device)
    ema, low = parameter.clone(), parameter.to(torch.bfloat16)
    adamw = torch.optim.AdamW([parameter], lr=1e-4, fused=bench.clock.on_gpu)

    def run():
        adamw.step()
        ema.lerp_(parameter, 1e-4)
        low.copy_(parameter)
        parameter.grad.zero_()

    # Read and written: parameter, gradient, both moments, EMA; written: the copy.
    bench.measure(label, "eager", run, 0, 42.0 * scale.adamw)


def operations(bench: Bench, scale, dtypes):
    for dtype in dtypes:
        for rows in scale.rows:
            linears(bench, scale, dtype, rows)
        linear_backwards(bench, scale, dtype)
        convolutions(bench, scale, dtype)
        if dtype != "tf32":  # of which only products are of interest
            attention(bench, scale, dtype)
            norms(bench, scale, dtype)
    optimiser(bench, scale)
