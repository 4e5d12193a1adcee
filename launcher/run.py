"""`shoal run STUDY`: expand, skip what is finished, start or join Ray, run the rest, report."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rich.console import Console

from launcher.calibrate import measure_new_cards
from launcher.cluster import Cluster
from launcher.early_stopping import EarlyStops, check_early_stopping
from launcher.expand import StudyJob, expand
from launcher.fit import gib_text
from launcher.folder import StudyFolder, data_key
from launcher.jobs import JobRunner
from launcher.links import say_link
from launcher.metrics import StudyMetrics
from launcher.ray_token import token_file
from launcher.report.write import write_report
from launcher.state import JobState
from launcher.status import StatusFile
from launcher.study import Study, load_study
from launcher.table import StudyView
from launcher.worker import RunJob, scratch_folder
from training.cuda.fitness import require_fitting_torch
from training.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR
from training.network.shared_memory import free_mib, why_too_small

OUTPUTS = Path("outputs")


def read_jobs(study_file: Path, *, on_own_cards: bool) -> tuple[Study, list[StudyJob]]:
    """Return the study and all its jobs, checked. Raises UserError with all that is wrong.

    `on_own_cards`: whether they are for this machine, whose cards must then be usable.
    """
    study = load_study(study_file)
    if on_own_cards and not study.virtual_cards:
        require_fitting_torch()
    jobs = expand(study, OUTPUTS)
    check_early_stopping(study, jobs)
    return study, jobs


def run_study(study_file: Path, *, address: str | None = None, run_job: RunJob | None = None) -> int:
    """Run what is missing of a study and write its report; return the exit status.

    `address` names a Ray cluster to join. `run_job` takes the rank program's place in tests.
    Raises UserError for bad input before anything starts.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    study, jobs = read_jobs(study_file, on_own_cards=address in (None, "", "local"))
    folder = StudyFolder(OUTPUTS / study.name)
    console = Console()
    with folder.locked():
        for message in folder.set_aside_changed(jobs):
            console.print(message, highlight=False, markup=False, soft_wrap=True)
        states = {job.name: JobState(name=job.name) for job in jobs}
        waiting = []
        for job in jobs:
            if result := folder.finished(job) or folder.stopped(job, study.early_stopping):
                states[job.name].end(result, earlier=True)
            else:
                waiting.append(job)
        folder.write_study(study.name, jobs)
        status = StatusFile(folder.root, study.name, study.priority, list(states.values()))
        status.write()
        interrupted = False
        keys = {data_key(job) for job in jobs}
        checks = {key: check for key, check in folder.read_data_checks().items() if key in keys}
        folder.write_data_checks(checks)  # those of data no job uses any more are left out
        if waiting or keys - folder.read_baselines().keys() or keys - checks.keys():
            try:
                _run_on_ray(study, jobs, waiting, folder, states, status, console, address, run_job)
            except KeyboardInterrupt:
                interrupted = True
        status.write(state="interrupted" if interrupted else "finished")
        report_file = write_report(folder)
    if interrupted:
        console.print("Interrupted; what is finished is kept. Run the same command to go on.", highlight=False)
        return EXIT_INTERRUPTED
    return _conclude(states, report_file, console)


def _conclude(states: dict[str, JobState], report_file: Path, console: Console) -> int:
    """Say how the study ended and where its page lies; return the exit status: 2 where the study alone is at fault."""
    failed = [state for state in states.values() if state.status == "failed"]
    summary = report_file.with_suffix(".md").read_text(encoding="utf-8").split("\n## ")[0].strip()
    console.print(summary, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nReport: {report_file} (open it in a browser)", highlight=False, soft_wrap=True)
    for state in failed:
        console.print(f"failed: {state.name}: {state.message}", highlight=False, markup=False, soft_wrap=True)
    cancelled = [state.name for state in states.values() if state.status == "cancelled"]
    if cancelled:
        console.print(f"cancelled: {', '.join(cancelled)}", highlight=False, markup=False, soft_wrap=True)
    at_fault = bool(failed) and not cancelled and all(state.is_user_error for state in failed)
    if failed or cancelled:
        mend = "Mend the study, then run" if at_fault else "Run"
        console.print(f"{mend} the same command to try these again; what is finished is kept.", highlight=False)
    return EXIT_USER_ERROR if at_fault else EXIT_FAILED if failed or cancelled else 0


def _run_on_ray(
    study: Study,
    jobs: list[StudyJob],
    waiting: list[StudyJob],
    folder: StudyFolder,
    states: dict[str, JobState],
    status: StatusFile,
    console: Console,
    address: str | None,
    run_job: RunJob | None,
) -> None:
    """Start or join Ray, run the waiting jobs, leave no process behind."""
    previous = signal.getsignal(signal.SIGTERM)
    early_stops = EarlyStops(study.early_stopping, jobs, folder)  # before what stopped a job is forgotten
    cluster = Cluster(address, study.cards_gib, f"Shoal study {study.name}", virtual=study.virtual_cards)
    try:
        for job in waiting:
            folder.begin(job)
        with StudyView(list(states.values()), console) as view:
            sizes = ", ".join(f"{card.name and f'{card.kind}, '}{gib_text(card.gib)} GiB" for card in cluster.cards)
            view.say(f"{len(waiting)} of {len(jobs)} jobs to run on {len(cluster.cards)} cards ({sizes})")
            if cluster.virtual_cards_unused:
                view.say("cards_gib is left aside: there are other cards. virtual_cards: true takes them all the same")
            if cluster.dashboard_url:
                token = " (it asks for this machine's token: ray get-auth-token)" if token_file().exists() else ""
                view.say(f"Ray dashboard: http://{cluster.dashboard_url}{token}")
            if any(job.spec.num_ranks > 1 or "num_ranks" not in job.fixed for job in waiting):
                say_link(cluster, view.say)
                on_one_pc = [card for card in cluster.cards if card.node_id == cluster.head_node_id]
                if cluster.on_card and len(on_one_pc) > 1 and (why := why_too_small(free_mib(), os.environ)):
                    view.say(f"ranks on several cards of this PC will fail: {why}")
            if cluster.on_card and not cluster.joined and run_job is None:
                measure_new_cards(view.say)
            scratch = scratch_folder(folder.root)
            metrics = StudyMetrics(study.name, states)
            runner = JobRunner(
                cluster, folder, states, view, metrics, scratch, run_job, study.max_failures, status, early_stops
            )
            try:
                runner.run(waiting, jobs)
            except BaseException:
                runner.stop()
                raise
            if study.early_stopping and len(waiting) == len(jobs) and not early_stops.halving.num_comparisons:
                view.say(
                    "early_stopping compared nothing: no two settings came to an evaluation after grace_epochs and "
                    "before their end. Lower early_stopping.grace_epochs or training.eval_steps."
                )
    finally:
        cluster.stop()
        signal.signal(signal.SIGTERM, previous)
