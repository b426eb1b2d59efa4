"""scripts/gpu-check soak: sampling and training, mixed, for ten minutes.

Memory, clocks, power and temperature are read every two seconds through nvidia-smi. It passes when
nothing failed and memory in the last third is what it was in the second.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time

import machine
from machine import Log, Payload, is_gpu, kill_group, quiet

FIELDS = ("memory.used", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
INTERVAL = 2.0  # seconds between two readings
GRACE = 60.0  # for loading the models, and for ending
# Of memory: the device's, and the process's, which has JavaScript's heap in it.
DEVICE_GROWTH, PROCESS_GROWTH = 0.02, 0.25


def reading(pid, device):
    """The numbers of the table, without those of the device where there is none; None at the end."""
    values = []
    if is_gpu(device):
        query = f"--query-gpu={','.join(FIELDS)}"
        line = quiet("nvidia-smi", query, "--format=csv,noheader,nounits")
        try:
            values = [float(value) for value in line.split("\n")[0].split(",")]
        except ValueError:
            return None
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        resident = [line.split()[1] for line in file if line.startswith("VmRSS")]
    return [*values, int(resident[0]) / 1024] if resident else None


def growth(samples, column, allowed, name):
    """What is wrong, or ''."""
    third = len(samples) // 3
    if third == 0:
        return f"too few readings of {name}"
    middle = max(values[column] for _, values in samples[third : 2 * third])
    last = max(values[column] for _, values in samples[2 * third :])
    if last > middle * (1 + allowed):
        return f"{name} grew from {middle:.0f} to {last:.0f} MiB"
    return ""


def summary(samples, names):
    """Smallest, mean and largest of each third."""
    rows = []
    third = max(1, len(samples) // 3)
    for i, name in enumerate(names):
        row = [name]
        for part in (samples[:third], samples[third : 2 * third], samples[2 * third :]):
            values = [values[i] for _, values in part]
            mean = sum(values) / len(values) if values else 0
            row.append(f"{min(values):.0f} / {mean:.0f} / {max(values):.0f}" if values else "")
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cuda:emulated or cpu")
    parser.add_argument("--seconds", type=float, default=520, help="of work")
    parser.add_argument("--model", default="DiT-B/2", help="a preset, or 'tiny' to try it")
    args = parser.parse_args()
    payload, log = Payload(), Log("soak")
    facts = machine.machine_facts(args.device)
    script = os.path.join(machine.ROOT, "scripts/gpu/soak.cjs")
    if not os.path.exists(payload.node):
        sys.exit("gpu-check: the payload has no node.tar.xz")
    command = [payload.node, script, payload.folder, args.device, args.model, str(args.seconds)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=payload.environment(),
        start_new_session=True,
        text=True,
    )
    output = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout), daemon=True)
    reader.start()
    begin, samples = time.monotonic(), []
    while process.poll() is None and time.monotonic() - begin < args.seconds + GRACE:
        values = reading(process.pid, args.device)
        if values is not None:
            samples.append((round(time.monotonic() - begin, 1), values))
        time.sleep(INTERVAL)
    hung = process.poll() is None
    kill_group(process)
    process.wait()
    reader.join(5)
    log.add("work", "".join(output))
    names = (*(FIELDS if is_gpu(args.device) else ()), "process memory, MiB")
    log.add(", ".join(["seconds", *names]), "\n".join(f"{t}, {v}" for t, v in samples))

    problems = []
    try:
        work = json.loads(output[-1])
        problems += work["errors"]
    except (IndexError, ValueError):
        work = {"images": 0, "steps": 0}
        problems.append("the work printed no summary")
    if hung:
        problems.append("it did not end in time")
    elif process.returncode != 0:
        problems.append(f"it ended with status {process.returncode}")
    if is_gpu(args.device):
        problems.append(growth(samples, 0, DEVICE_GROWTH, "the device's memory"))
    problems.append(growth(samples, -1, PROCESS_GROWTH, "the process's memory"))
    problems = [problem for problem in problems if problem]
    done = f"{work['images']} images sampled, {work['steps']} training steps"
    text = "\n\n".join(
        [
            machine.head(payload, args.device, facts),
            f"{time.monotonic() - begin:.0f} s of work, {len(samples)} readings: {done}.",
            machine.table(
                ["least / mean / most", "first third", "second", "last"], summary(samples, names)
            ),
            "\n".join(f"- {problem}" for problem in problems) or "No error, memory flat.",
        ]
    )
    results = {"facts": facts, "payload": payload.facts, "work": work, "samples": samples}
    machine.write_results("soak", text, {**results, "problems": problems})
    print(f"{int(not problems)} passed, {int(bool(problems))} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
