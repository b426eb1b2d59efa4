#!/usr/bin/env python3
"""The PyTorch peer of dit-native.

    torch_dit.py check                 compares it with the fixtures, nothing else
    torch_dit.py ceilings ops forward  checks it, then times these

Parts: ceilings, ops, forward, training, decode. A peer that fails its check is not timed. The
check runs on any PyTorch from 1.13 on, the timings from 2.5 on.
"""

import argparse
import os
import platform
import sys

import torch

import torch_check

PARTS = ("check", "ceilings", "ops", "forward", "training", "decode")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", default="xl", choices=("xl", "tiny"))
    parser.add_argument("--dtypes", default="bf16", help="of bf16, tf32: comma-separated")
    parser.add_argument("--json", help="a file for the records, one JSON object a line")
    parser.add_argument("--only", default="", help="comma-separated parts of labels")
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--compiled-model", action="store_true", help="the whole model, too")
    parser.add_argument("--unchecked", action="store_true", help="times a wrong peer, marked so")
    parser.add_argument("--fixtures", help="instead of test/fixtures")
    return parser.parse_args()


def describe(device):
    where = platform.processor() or platform.machine()
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name()
    return f"PyTorch {torch.__version__} on {where}"


def main():
    args = parse()
    if args.fixtures:
        os.environ["DIT_FIXTURES"] = args.fixtures
    print(describe(args.device))
    passed, failures = torch_check.check(args.device)
    for failure in failures:
        print(failure)
    print(f"{passed} passed, {len(failures)} failed")
    if failures and not args.unchecked:
        print("the peer is wrong: nothing was timed")
        return 1
    parts = [part for part in PARTS if part in args.parts and part != "check"]
    if not parts:
        return 1 if failures else 0

    import torch_ops
    import torch_runs
    from torch_timing import Bench

    only = [part for part in args.only.split(",") if part]
    bench = Bench(args.device, args.json, args.samples, only, compiled=not args.eager)
    bench.mark = f", {len(failures)} checks failed" if failures else ""
    scale, dtypes = torch_ops.SCALES[args.scale], args.dtypes.split(",")
    for part in parts:
        if part == "ceilings":
            torch_ops.ceilings(bench, scale)
        elif part == "ops":
            torch_ops.operations(bench, scale, dtypes)
        elif part == "forward":
            torch_runs.sampling(bench, args.scale, dtypes, whole=args.compiled_model)
        elif part == "training":
            torch_runs.training(bench, args.scale, dtypes)
        else:
            torch_runs.decoding(bench, args.scale, dtypes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
