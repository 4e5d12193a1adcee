"""The `shoal` command.

    shoal run studies/demo.yaml        run what is missing of a study, on this machine or a Ray cluster
    shoal plan studies/demo.yaml       say what it would run, the memory it needs and on which cards it fits
    shoal check train.csv              say what is wrong with data before anything is trained on it
    shoal status [--watch]             how far the studies in outputs/ or on a cluster are
    shoal cancel STUDY|JOB             end what waits or runs of a study, or one job
    shoal report outputs/demo          write the report again from the results; of several studies, one to compare them
    shoal predict RUN --input FILE     label texts with a finished job
    shoal serve RUN                    label texts over HTTP
    shoal merge RUN --output DIR       its adapter and base as one ordinary Hugging Face model
    shoal export RUN --output DIR --format vllm    its base with the head, and its LoRA weights, as vLLM loads them
    shoal cards                        print this machine's cards for `ray start --resources=...`
    shoal doctor                       what is wrong with this machine, or with a cluster's PCs (--cluster FILE)
    shoal calibrate                    measure this machine, so that plans tell how long jobs take (--cluster FILE)

Exit status: 0 all is well, 1 a job failed, data has errors, what was written did not verify or the doctor found an
error, 2 the input is at fault, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    ShoalError,
    UserError,
    describe_os_error,
)

if TYPE_CHECKING:
    from launcher.others import Studies

VIRTUAL_CARDS = "SHOAL_CARDS_GIB"
"""Environment variable: the sizes in GiB of a cluster node's virtual cards, e.g. "8,12"."""
CLUSTER = "Ray cluster whose studies are meant (default: $RAY_ADDRESS, else those in outputs/ here)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ShoalError as error:
        for line in str(error).splitlines():
            print(f"shoal: {line}", file=sys.stderr)
        return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("shoal: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever reads our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"shoal: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run what is missing of a study and write its report")
    run.add_argument("study", type=Path, help="study file (YAML)")
    run.add_argument("--address", help="Ray cluster to join (default: $RAY_ADDRESS, else Ray is started here)")
    run.set_defaults(command=_run)
    plan = commands.add_parser("plan", help="say what a study would run, the memory it needs and where it fits")
    plan.add_argument("study", type=Path, help="study file (YAML)")
    plan.add_argument(
        "--cards", metavar="CARD,...", help="cards to plan for: GB as they are sold (8,12,12) or models (3060,4090)"
    )
    plan.add_argument("--json", action="store_true", help="print JSON, memory in bytes by cause")
    plan.set_defaults(command=_plan)
    _add_check(commands.add_parser("check", help="say what is wrong with data before anything is trained on it"))
    status = commands.add_parser("status", help="say how far studies are, from any terminal")
    status.add_argument("study", nargs="*", help="names of studies (default: all; those that ended without their jobs)")
    status.add_argument("--address", help=CLUSTER)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="go on showing them until all have ended, or Ctrl-C")
    form.add_argument("--json", action="store_true", help="print JSON, with times in Unix seconds")
    status.set_defaults(command=_status)
    cancel = commands.add_parser("cancel", help="end a study or a job that waits or runs")
    cancel.add_argument("target", metavar="STUDY|JOB", help="study, or one of its jobs: JOB or STUDY/JOB")
    cancel.add_argument("--address", help=CLUSTER)
    cancel.set_defaults(command=_cancel)
    report = commands.add_parser("report", help="write the report of a study again, or one that compares several")
    report.add_argument("folder", type=Path, nargs="+", help="study folder, e.g. outputs/demo")
    report.add_argument("--output", type=Path, help="folder for the report of several (default: compare-A-B beside A)")
    report.set_defaults(command=_report)
    predict = commands.add_parser("predict", help="label texts with a finished job")
    predict.add_argument("run", type=Path, help="run folder: a job's output_dir, or outputs/<study>/jobs/<name>")
    given = predict.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", help="CSV, TSV or JSONL (each also .gz) or Parquet file; - for standard input")
    given.add_argument("--text", nargs="+", help="texts to label")
    predict.add_argument("--output", type=Path, help=".csv, .jsonl or .parquet file (default: CSV on standard output)")
    predict.add_argument("--probabilities", action="store_true", help="write the probability of every label")
    predict.set_defaults(command=_predict)
    merge = commands.add_parser("merge", help="write a job's base and adapter as one ordinary Hugging Face model")
    merge.add_argument("run", type=Path, help="run folder: a job's output_dir, or outputs/<study>/jobs/<name>")
    merge.add_argument("--output", type=Path, required=True, help="folder to write, which must not exist")
    merge.set_defaults(command=_merge)
    _add_export(commands)
    _add_serve(commands)
    cards = commands.add_parser("cards", help="print this machine's cards for ray start --resources=...")
    # A node without a GPU gets virtual cards only where its owner says so: a rank there trains on the CPU, slowly.
    cards.add_argument(
        "--gib", type=_sizes, metavar="GIB,...", default=os.environ.get(VIRTUAL_CARDS) or [],
        help=f"virtual cards to announce where there is no GPU (default: ${VIRTUAL_CARDS}, else none)",
    )  # fmt: skip
    cards.add_argument("--labels", action="store_true", help="print what they are for ray start --labels=... instead")
    cards.set_defaults(command=_cards)
    doctor = commands.add_parser("doctor", help="say what is wrong with this machine or a cluster, and the mend")
    doctor.add_argument("--cluster", type=Path, metavar="FILE", help="Ray's cluster file, e.g. cluster/cluster.yaml")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)
    _add_calibrate(commands)
    return parser


def _add_check(check: argparse.ArgumentParser) -> None:
    """Add the arguments of `shoal check`, called as in a study's data section."""
    check.add_argument("data", help="file, folder, preset or hub name of the train data, or a study file (YAML)")
    check.add_argument("--validation_file", help="validation split: CSV, TSV, JSON, JSONL (also .gz) or Parquet")
    check.add_argument("--test_file", help="test split, same formats")
    check.add_argument("--text_column_names", nargs="+", help="columns of the text (default: text)")
    check.add_argument("--label_column_name", help="column of the class (default: label)")
    check.add_argument("--model_name_or_path", help="count tokens as this model does")
    check.add_argument("--max_seq_length", type=int, help="tokens read of each text at once (default: 512)")
    check.add_argument("--long_text", help="what is read of a longer one: head (default), tail, head+tail or chunk")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(command=_check)


def _add_calibrate(commands: Any) -> None:
    calibrate = commands.add_parser("calibrate", help="measure this machine's cards or CPU, for what plans say")
    calibrate.add_argument("--cluster", type=Path, metavar="FILE", help="measure each PC of Ray's cluster file")
    calibrate.add_argument("--short", action="store_true", help="a rough idea in a part of the time")
    calibrate.add_argument("--show", action="store_true", help="print forecast against measured of all jobs seen")
    calibrate.set_defaults(command=_calibrate)


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="write a job's model as other programs load it")
    export.add_argument("run", type=Path, help="run folder: a job's output_dir, or outputs/<study>/jobs/<name>")
    export.add_argument("--output", type=Path, required=True, help="folder to write, which must not exist")
    export.add_argument(
        "--format", choices=("transformers", "vllm"), required=True,
        help="transformers: one ordinary model, as merge writes it; vllm: base with head, and LoRA weights beside it",
    )  # fmt: skip
    export.set_defaults(command=_export)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="label texts over HTTP with a finished job")
    serve.add_argument("run", type=Path, help="run folder: a job's output_dir, or outputs/<study>/jobs/<name>")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    serve.set_defaults(command=_serve)


def _sizes(text: str) -> list[float]:
    """Read "8,12,24", the GiB of virtual cards."""
    from launcher.cards import MAX_GIB

    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(1 <= size <= MAX_GIB for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of card sizes in GiB, such as 8,12,12")
    return sizes


def _run(options: argparse.Namespace) -> int:
    from launcher.run import run_study

    return run_study(options.study, address=options.address)


def _plan(options: argparse.Namespace) -> int:
    from launcher.plan import print_plan

    return print_plan(options.study, options.cards, as_json=options.json)


def _check(options: argparse.Namespace) -> int:
    from launcher.check import check_all

    settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("command", "data", "json") and value is not None
    }
    return check_all(options.data, settings, as_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from launcher.watch import show_status

    return show_status(_studies(options), options.study, watch=options.watch, as_json=options.json)


def _cancel(options: argparse.Namespace) -> int:
    from launcher.watch import cancel

    return cancel(_studies(options), options.target)


def _studies(options: argparse.Namespace) -> Studies:
    """Return the studies that a command is about."""
    from launcher.others import StudiesHere, StudiesOnCluster
    from launcher.run import OUTPUTS

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    return StudiesHere(OUTPUTS) if address == "local" else StudiesOnCluster(address)


def _report(options: argparse.Namespace) -> int:
    from launcher.folder import StudyFolder
    from launcher.report.compare import write_comparison
    from launcher.report.write import write_report

    folders = [StudyFolder(path) for path in options.folder]
    if len(folders) > 1:
        print(write_comparison(folders, options.output))
    elif options.output:
        raise UserError("--output is for several studies; the report of one lies in its folder. Leave it out.")
    else:
        print(write_report(folders[0]))
    return 0


def _predict(options: argparse.Namespace) -> int:
    from training.predict import predict

    predict(
        options.run,
        source=options.input,
        texts=options.text,
        output=options.output,
        probabilities=options.probabilities,
    )
    return 0


def _merge(options: argparse.Namespace) -> int:
    from training.merge import merge

    merge(options.run, options.output)
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.format == "transformers":
        return _merge(options)
    from training.export import export_for_vllm

    export_for_vllm(options.run, options.output)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from training.serve import serve

    serve(options.run, options.host, options.port)
    return 0


def _cards(options: argparse.Namespace) -> int:
    from launcher.cards import gpus, labels, local_cards, resources
    from training.cuda.fitness import require_fitting_torch

    if gpus():
        require_fitting_torch()  # a PC whose cards cannot be used stays out of a cluster, and says why
    cards = local_cards(options.gib)
    # `ray start` takes labels as name=value,...
    print(
        ",".join(f"{name}={value}" for name, value in labels(cards).items())
        if options.labels
        else json.dumps(resources(cards))
    )
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from launcher.doctor.examine import doctor

    return doctor(options.cluster, as_json=options.json)


def _calibrate(options: argparse.Namespace) -> int:
    from launcher.calibrate import calibrate, calibrate_cluster

    if options.show:
        from launcher.seen import show

        return show()
    return calibrate_cluster(options.cluster) if options.cluster else calibrate(short=options.short)


if __name__ == "__main__":
    sys.exit(main())
