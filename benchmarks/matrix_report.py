"""The tables of benchmarks/matrix.py, for matrix.md and README.md."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

QUANTIZATIONS = ("none", "nf4", "int8")
STAGES = (0, 1, 2, 3)
OFFLOADS = ("none", "optimizer", "optimizer+param")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")
VARIANTS = {
    "`--bf16`": {"dtype": "bf16", "quantization": "none"},
    "`--fp16`": {"dtype": "fp16", "quantization": "none"},
    "`--fp16`, nf4": {"dtype": "fp16", "quantization": "nf4"},
    "`--use_dora`": {"variant": "dora", "quantization": "none"},
    "`--use_dora`, nf4": {"variant": "dora", "quantization": "nf4"},
    "`--use_rslora`": {"variant": "rslora", "quantization": "none"},
    "`--use_rslora`, nf4": {"variant": "rslora", "quantization": "nf4"},
}
MAIN = {"dtype": "fp32", "variant": "lora"}
NOT_TRIED = "–"
REASONS = """\
- DeepSpeed's engine offloads the optimizer from ZeRO stage 1 on and parameters at stage 3 only. Shoal refuses the
  rest before anything is loaded (exit status 2).
- PEFT and DeepSpeed: DoRA on a quantized base is refused under stage 3. PEFT replaces quantized weights that DeepSpeed
  has partitioned.
- PEFT's documentation: ZeRO-3 + QLoRA + offload can use *more* GPU memory than without offload.
- DeepSpeed: without ZeRO it would train bf16 weights without fp32 copies. Shoal takes stage 1 for stage 0, in bf16 and
  in fp16, and says so.
- bitsandbytes: `bnb_4bit_quant_storage` must equal the dtype, or ZeRO-3 cannot partition nf4 weights; Shoal sets it.
- bitsandbytes: on CPUs with AVX512-bf16, nf4 is multiplied in bf16 once a model is evaluated. Shoal switches that off;
  with it, your program's logits differ by up to {kernel} of the largest.
- bitsandbytes and PEFT: the weights that kernel repacks dequantize to wrong values, and DoRA takes norms of them. A
  plain reload of nf4 + DoRA on such a CPU gives other logits (by {dora} of the largest); set
  `support_avx512bf16_for_cpu = False` on the `Linear4bit` layers first, and they are those of the training.
"""
"""What lies behind the cells, each with the library it comes from."""

Result = dict[str, Any]


def header(command: str) -> Result:
    """Return date, hardware, versions and command."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": str(date.today()),
        "command": command,
        "hardware": f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores, no GPU",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def select(results: list[Result], **wanted: Any) -> list[Result]:
    """Return the cells that have all these values."""
    return [result for result in results if all(result[name] == value for name, value in wanted.items())]


def cell_text(results: list[Result]) -> str:
    """Return "yes" where all of these are right, else "no" with the reasons."""
    if not results:
        return NOT_TRIED
    reasons = dict.fromkeys(short_reason(result) for result in results if result["outcome"] != "yes")
    if not reasons:
        return "yes"
    part = sum(result["outcome"] != "yes" for result in results)
    share = "" if part == len(results) else f" ({part} of {len(results)})"
    return f"no{share}: {'; '.join(reasons)}".replace("|", "\\|")


def short_reason(result: Result) -> str:
    """Return a message's core, short enough for a table."""
    message = str(result["message"])
    needs = re.search(r"needs ZeRO (stage [\d, or]+?) and", message)
    if needs:
        return f"needs {needs[1]}"
    if result["outcome"] == "refused" and "does not run under ZeRO stage 3" in message:
        return "refused, PEFT"
    if message.startswith("bf16 kernel"):
        return "reloaded on this CPU, bitsandbytes"
    return message[:80]


def tables(results: list[Result]) -> str:
    """Return quantization x ZeRO by offload, then the variants by ZeRO."""
    lines = ["| base | ZeRO | no offload | optimizer | optimizer + param |", "|---|---|---|---|---|"]
    for quantization in QUANTIZATIONS:
        for stage in STAGES:
            row = {"quantization": quantization, "stage": stage, **MAIN}
            cells = [cell_text(select(results, offload=offload, **row)) for offload in OFFLOADS]
            lines.append(f"| {' | '.join([quantization, str(stage), *cells])} |")
    lines += ["", f"| one rank | {' | '.join(f'ZeRO {stage}' for stage in STAGES)} |", "|---|---|---|---|---|"]
    for name, wanted in VARIANTS.items():
        wanted = {**MAIN, **wanted}
        cells = [cell_text(select(results, stage=stage, **wanted)) for stage in STAGES]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def largest(results: list[Result], name: str) -> float:
    """Return the largest of a difference, 0 where there is none."""
    return max((float(result[name]) for result in results if name in result), default=0.0)


def reasons(results: list[Result]) -> str:
    """Return the list of reasons, with the measured differences in them."""
    kernel = {
        variant: largest(select(results, variant=variant), "difference_bf16_kernel") for variant in ("lora", "dora")
    }
    return REASONS.format(kernel=f"{kernel['lora']:.1g}", dora=f"{kernel['dora']:.1g}")


def readme_part(results: list[Result]) -> str:
    """Return what stands between README's markers."""
    return f"{tables(results)}\n{reasons(results)}"


def differences(results: list[Result]) -> str:
    """Return the largest difference of each precision beside its tolerance."""
    lines = [
        "| base | cells compared | largest difference | tolerance | without LoRA, at least |",
        "|---|---|---|---|---|",
    ]
    kinds = {name: {"quantization": name, "dtype": "fp32"} for name in QUANTIZATIONS}
    for name, wanted in {**kinds, "none, bf16": {"dtype": "bf16"}, "fp16": {"dtype": "fp16"}}.items():
        compared = [result for result in select(results, **wanted) if "difference" in result]
        if compared:
            least = min(result["difference_without_lora"] for result in compared)
            numbers = [f"{largest(compared, 'difference'):.1e}", f"{compared[0]['tolerance']:.0e}", f"{least:.2f}"]
            lines.append(f"| {' | '.join([name, str(len(compared)), *numbers])} |")
    return "\n".join(lines) + "\n"


def report(content: Result) -> str:
    """Return matrix.md."""
    results = content["cells"]
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    messages = dict.fromkeys(str(result["message"]) for result in results if "message" in result)
    return f"""# What works together: train, save, reload without Shoal, the same logits

{tables(results)}
"yes": with 1 and 2 ranks and with 2, 4 and 20 classes alike (the second table: 1 rank, 4 classes), the adapter that a
new process loads with transformers and PEFT gives the test texts' logits of predictions.parquet.

{reasons(results)}
Differences are shares of the largest logit (at least 1). The last column is the same with the LoRA weights zeroed: a
comparison that could not tell would not count.

{differences(results)}
Messages of what is refused or wrong, exit status 2 where refused:

{chr(10).join(f"- {message}" for message in messages) or "- none"}

- Command: `{content["command"]}`; {len(results)} cells, each a random LLaMA of two layers trained for five steps
- Run on {content["date"]}, {content["hardware"]}
- Versions: {versions}
"""
