"""`shoal calibrate`: this machine's CPU, or each PC of a cluster file, is measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from launcher.cards import LocalCard, gpus
from launcher.doctor.nodes import Node, NodeError, read_cluster_file
from launcher.expand import CHECKOUT
from training.calibration.costs import Quantities
from training.calibration.record import CardRecord, card_record
from training.errors import EXIT_FAILED, ShoalError

NODE_SECONDS = 900.0
"""An old PC builds CPUAdam in minutes."""
FIRST_JOB_SECONDS = 120.0
"""How long a study waits for a card to be measured, at most."""


def calibrate(*, short: bool = False) -> int:
    """Measure each kind of card of this machine, or its CPU, and keep the records; return the exit status.

    Raises ShoalError.
    """
    console = Console(stderr=True)
    cards: list[LocalCard | None] = [*kinds_of_cards()]
    for card in cards or [None]:
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting", total=None)

            def tell(answer: dict[str, Any], progress: Progress = progress, task: TaskID = task) -> None:
                if "of" in answer:
                    progress.update(task, total=answer["of"])
                if "part" in answer:
                    progress.update(task, advance=1, description=f"measuring: {answer['part']}")

            record = measure_here(tell, short=short, card=card)
        print(describe(record))
    return 0


def kinds_of_cards() -> list[LocalCard]:
    """Return a card of each kind that this machine has."""
    return list({card.name: card for card in reversed(gpus())}.values())


def measure_new_cards(say: Callable[[str], None]) -> None:
    """Measure the kinds of cards of this machine that have no record yet; what fails is said, and no job's fault."""
    for card in kinds_of_cards():
        if card_record(card.name) is not None:
            continue
        say(f"measuring {card.name} once, in about a minute: how fast it is, and whether its kernels are right")
        try:
            record = measure_here(lambda _: None, card=card, timeout_seconds=FIRST_JOB_SECONDS)
        except (ShoalError, OSError) as error:
            say(f"{card.name} is not measured, and its speed assumed: {error}")
            continue
        for name in record.wrong:
            say(f"{card.name}: its {name} is wrong ({record.kernels[name]:.2g} off)")


def measure_here(
    tell: Callable[[dict[str, Any]], None],
    *,
    short: bool = False,
    card: LocalCard | None = None,
    timeout_seconds: float = NODE_SECONDS,
) -> CardRecord:
    """Return the record of a card, or of the CPU, measured in a process of its own, which keeps it. Raises ShoalError.

    `tell` is told each answer of training.calibration.
    """
    words = ["--card"] if card else ["--short"] if short else []
    visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(card.index)} if card else {}
    command = [sys.executable, "-m", "training.calibration", *words]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **visible},
            start_new_session=True,
        )  # fmt: skip
        clock = threading.Timer(timeout_seconds, _end, [process])
        clock.start()
        answer: dict[str, Any] = {}
        try:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                tell(answer)
        except BaseException:
            _end(process)
            raise
        finally:
            process.wait()
            clock.cancel()
        log.seek(0)
        said = log.read().strip().splitlines()
    if "record" not in answer:
        raise ShoalError(f"the calibration failed: {answer.get('error') or (said[-1] if said else 'it said nothing')}")
    try:
        record = with_ray(CardRecord.from_dict(answer["record"]))
    except (ValueError, TypeError, KeyError) as error:  # as times that are no numbers
        raise ShoalError(f"the calibration failed: its record is damaged ({error})") from None
    record.save()
    return record


def _end(process: subprocess.Popen[str]) -> None:
    """End a calibration with all its processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def with_ray(record: CardRecord) -> CardRecord:
    """Return the record with what Ray adds to the start of a rank: its own import, with as many at once."""
    cores = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    command = [sys.executable, "-c", "import ray"]
    processes = [subprocess.Popen(command) for _ in range(max(1, cores // record.num_threads))]
    for process in processes:
        process.wait()
    taken = Quantities(starts=time.perf_counter() - started)
    return replace(record, costs={kind: costs + taken for kind, costs in record.costs.items()})


def calibrate_cluster(cluster_file: Path) -> int:
    """Measure each PC of a cluster file and keep the records here, on the head too; return the exit status."""
    nodes = read_cluster_file(cluster_file).nodes()
    print(f"measuring {len(nodes)} PCs, about a minute each, at once", file=sys.stderr)
    failed = False
    with ThreadPoolExecutor(len(nodes)) as pool:
        for node, answer in zip(nodes, pool.map(_measure_node, nodes), strict=True):
            if isinstance(answer, NodeError):
                failed = True
                print(f"{node.name}: not measured: {answer}")
            else:
                answer.save()
                print(f"{node.name}: {describe(answer)}")
    return EXIT_FAILED if failed else 0


def _measure_node(node: Node) -> CardRecord | NodeError:
    try:
        answer = node.run("calibration.py", timeout_seconds=NODE_SECONDS)
        return CardRecord.from_dict(answer["record"])
    except NodeError as error:
        return error
    except (KeyError, TypeError, ValueError):
        return NodeError("it answered no record; has it another version of Shoal?", unreachable=False)


def describe(record: CardRecord) -> str:
    """Return what was measured, in lines."""
    lines = [f"{record.name} ({record.driver}), torch {record.torch}: measured in {record.seconds:.0f} s"]
    start = next(iter(record.costs.values())).starts if record.costs else 0.0
    lines.append(f"  a job's start and end: {start:.1f} s")
    for kind, costs in record.costs.items():
        speed = f"{1e-9 / costs.operations:.0f} GFLOP/s" if costs.operations else "speed not known"
        lines.append(f"  {kind}: {speed}, {1e3 * costs.layers:.2f} ms a layer and micro-batch")
    for name, figure in record.speed.items():
        lines.append(f"  {name}: {figure:.3g}")
    lines += [f"  {name} is wrong here: {record.kernels[name]:.2g} off" for name in record.wrong]
    lines += [f"  memory, {name}: {size / 2**20:.0f} MiB" for name, size in record.memory.items()]
    lines.append(f"  kept in {record.path}")
    return os.linesep.join(lines)
