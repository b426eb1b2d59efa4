"""Joins our times with PyTorch's, by label, into one table."""

from machine import table


def rates(record):
    seconds = record["seconds"]
    if record.get("flops"):
        return record["flops"] / seconds * 1e-12, "TFLOP/s"
    if record.get("bytes"):
        return record["bytes"] / seconds * 1e-9, "GB/s"
    return None, ""


def duration(seconds):
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-2 else f"{seconds * 1e3:.2f} ms"


def rate_text(record):
    rate, unit = rates(record)
    return "" if rate is None else f"{rate:.0f} {unit}" if rate >= 10 else f"{rate:.2f} {unit}"


def ceilings(peer):
    """{unit and type: rate}, of what was measured."""
    found = {}
    for record in peer:
        if not record["label"].startswith("ceiling.") or "seconds" not in record:
            continue
        rate, unit = rates(record)
        kind = record["label"].split(" ")[-1] if unit == "TFLOP/s" else ""
        found[f"{unit} {kind}".strip()] = rate
    return found


def share(record, most):
    """Of the ceiling for the operation's type."""
    rate, unit = rates(record)
    kind = record["label"].split(" ")[-1] if unit == "TFLOP/s" else ""
    ceiling = most.get(f"{unit} {kind}".strip())
    return "" if rate is None or not ceiling else f"{100 * rate / ceiling:.0f} %"


def by_label(records):
    found = {}
    for record in records:
        found.setdefault(record["label"], []).append(record)
    return found


def comparison(ours, again, peer):
    most = ceilings(peer)
    theirs, second = by_label(peer), by_label(again)
    labels = [record["label"] for record in ours]
    rows = []
    for record in ours:
        label = record["label"]
        runs = [r for r in theirs.get(label, []) if "seconds" in r]
        best = min(runs, key=lambda r: r["seconds"], default=None)
        drift = second.get(label)
        rows.append(
            [
                label,
                duration(record["seconds"]),
                f"{100 * (drift[0]['seconds'] / record['seconds'] - 1):+.0f} %" if drift else "",
                rate_text(record),
                share(record, most),
                duration(best["seconds"]) if best else "not run",
                best["variant"] if best else "",
                f"{best['seconds'] / record['seconds']:.2f}" if best else "",
            ]
        )
    columns = ["ours", "median", "again", "rate", "of ceiling", "PyTorch's best", "how", "× faster"]
    parts = []
    lines = [
        f"- {r['label']} ({r['variant']}): {rate_text(r)}"
        for r in peer
        if r["label"].startswith("ceiling.") and "seconds" in r
    ]
    if lines:
        parts.append("Ceilings, as PyTorch reaches them:\n\n" + "\n".join(lines))
    if rows:
        parts.append(
            "Ours beside the fastest way of PyTorch's. “× faster” is PyTorch's time over ours; "
            "“again” is how a second run, after PyTorch's, differs.\n\n" + table(columns, rows)
        )
    weighted = linears(ours, theirs)
    if weighted:
        parts.append(weighted)
    alone = sorted(set(theirs) - set(labels) - {l for l in theirs if l.startswith("ceiling.")})
    if alone:
        parts.append(f"Not measured on our side: {', '.join(alone)}.")
    return "\n\n".join(parts) or "Nothing was measured."


def details(peer):
    """All of PyTorch's ways, those that could not run with the reason."""
    rows = [
        [
            r["label"],
            r["variant"],
            duration(r["seconds"]) if "seconds" in r else "not run",
            rate_text(r) if "seconds" in r else r["skipped"],
            f"{r['peak_memory'] / 2**30:.1f} GiB" if r.get("peak_memory") else "",
        ]
        for r in peer
    ]
    return table(["PyTorch", "how", "median", "rate or reason", "peak memory"], rows)


def group_variants(records):
    """{label: {variant: record}}, in the order of the records."""
    found = {}
    for record in records:
        found.setdefault(record["label"], {})[record["variant"]] = record
    return found


def variants(records, predictions):
    """What is fastest for each label, beside production."""
    rows, totals = [], {}
    for label, runs in group_variants(records).items():
        production = runs.get("production")
        others = [run for name, run in runs.items() if name not in ("production", "again")]
        if production is None:
            continue
        expected = predictions.get(label, {})
        predict = lambda name: duration(expected[name]) if name in expected else ""  # noqa: E731
        base, again = production["seconds"], runs.get("again")
        best = min([production, *others], key=lambda run: run["seconds"])
        rows.append(
            [
                label,
                duration(base),
                predict("production"),
                f"{100 * (again['seconds'] / base - 1):+.1f} %" if again else "",
                rate_text(production),
                best["variant"],
                duration(best["seconds"]),
                predict(best["variant"]),
                f"{base / best['seconds']:.3f}",
                str(len(others)),
            ]
        )
        if label.startswith("linear."):
            total = totals.setdefault(f"{label.split(' ')[1].split('x')[0]} rows", [0, 0, 0, 0])
            for i, value in enumerate((1, production["flops"], base, best["seconds"])):
                total[i] += value
    columns = ["variants of", "production", "predicted", "again", "rate"]
    columns += ["fastest", "time", "predicted", "× production", "others"]
    lines = [
        f"- The four linears at {key}: {flops / base * 1e-12:.2f} TFLOP/s, each by its fastest "
        f"{flops / best * 1e-12:.2f}"
        for key, (count, flops, base, best) in totals.items()
        if count == 4
    ]
    head = (
        "Production is timed first and last (“again”): what is gained has to be more than that "
        "differs. “predicted” is scripts/cuda/variants.mjs, an H100 on paper."
    )
    return "\n\n".join(part for part in (head, table(columns, rows), "\n".join(lines)) if part)


def variant_details(records, predictions):
    rows = [
        [
            label,
            name,
            duration(run["seconds"]),
            duration(run["best"]),
            duration(expected) if expected else "",
            f"{run['seconds'] / expected:.2f}" if expected else "",
            rate_text(run),
        ]
        for label, runs in group_variants(records).items()
        for name, run in runs.items()
        for expected in [predictions.get(label, {}).get(name)]
    ]
    columns = ["variants of", "variant", "median", "best", "predicted", "× predicted", "rate"]
    return table(columns, rows) if rows else ""


def linears(ours, theirs):
    """The four products of a block together: their rate weighted by their operations."""
    lines = []
    groups = {}
    for record in ours:
        name, *rest = record["label"].split(" ")
        if name in ("linear.qkv", "linear.proj", "linear.fc1", "linear.fc2"):
            key = f"{rest[0].split('x')[0]} rows, {rest[1]}"
            groups.setdefault(key, []).append(record)
    for key, records in groups.items():
        if len(records) != 4:
            continue
        flops = sum(r["flops"] for r in records)
        seconds = sum(r["seconds"] for r in records)
        line = f"- The four linears at {key}, weighted: {flops / seconds * 1e-12:.2f} TFLOP/s"
        runs = [theirs.get(r["label"], []) for r in records]
        for how in ("eager", "compiled"):
            times = [r["seconds"] for run in runs for r in run
                     if r["variant"] == how and "seconds" in r]  # fmt: skip
            if len(times) == 4:
                line += f", PyTorch {how} {flops / sum(times) * 1e-12:.2f}"
        lines.append(line)
    return "\n".join(lines)
