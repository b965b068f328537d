"""Commands for trainings, studies and MLflow: settings, study, tables, mlflow-sync, register."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ..common.bundle import bundle_folder, config_file, merged
from ..common.errors import UserError
from .console import console, plain, say, show_study


def settings(
    configs: Annotated[list[str],
        Argument(metavar="CONFIG...", help="train, evaluate or inference, then overlays, such as systems/focal.")],
    bundle_root: Annotated[Path | None, Option(help="Folder of another bundle than the one that came along.")] = None,
) -> None:  # fmt: skip
    """Show every setting of the bundle's configs: its value, what it is and what it may be."""
    from ..common.settings import settings_text

    root = bundle_folder(bundle_root)
    say(settings_text(merged(config_file(root, name) for name in configs)))


def tables(
    studies: Annotated[list[Path],
        Argument(metavar="STUDY...", help="Folder of a study; further ones (one a machine) join Table 2.")],
    output: Annotated[Path | None,
        Option("-o", "--output", help="Folder to write to, by default tables/ in the first study.")] = None,
    confidence: Annotated[float, Option(help="Of the intervals; tests are at the level 1 - this.")] = 0.95,
    resamples: Annotated[int, Option(help="Bootstrap draws, and permutations.")] = 10_000,
    seed: Annotated[int, Option(help="Same seed, same tables.")] = 0,
) -> None:  # fmt: skip
    """Write the tables and figures of a study, finished or not: index.html, Markdown, CSV, LaTeX, PNG and SVG."""
    from ..studies.tables import write_tables

    written = write_tables(studies, output, confidence, resamples, seed)
    show_study(written.table, written.verdicts)
    say(f"wrote {written.paths[0].parent}: {', '.join(path.name for path in written.paths)}")


def study(
    file: Annotated[Path, Argument(help="The study's YAML, or one that came along by its name: paper, demo.")],
    output: Annotated[Path | None, Option("-o", "--output", help="Its folder; else runs/NAME.")] = None,
    cohort: Annotated[str | None, Option(help="The cohort file, instead of the study's.")] = None,
    bundle_root: Annotated[str | None, Option(help="Folder of the bundle, instead of the study's.")] = None,
    engine: Annotated[Literal["local", "ray", "slurm"],
        Option(help="Run here, on a Ray cluster, or as jobs of SLURM.")] = "local",
    workers: Annotated[int, Option(help="local: runs at a time.")] = 1,
    address: Annotated[str | None, Option(help="ray: of the cluster; else one is started here.")] = None,
    cpus: Annotated[float, Option(help="ray, slurm: CPUs of a run.")] = 1,
    gpus: Annotated[float, Option(help="ray, slurm: GPUs of a run.")] = 0,
    slurm: Annotated[list[str] | None, Option(metavar="KEY=VALUE",
        help="slurm: an option of sbatch, such as time=240 (minutes; needed) or partition=gpu; repeatable.")] = None,
    final: Annotated[str | None, Option(
        help="Once the study is finished: judge this configuration on the cohort's held-out test split.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be run.")] = False,
) -> None:  # fmt: skip
    """Train and judge a grid of systems, seeds and folds; what is finished stays, what was killed goes on."""
    from ..common.claims import claimed
    from ..studies import engines
    from ..studies.folder import StudyFolder, close_study_run, open_study_run
    from ..studies.plan import final_study, plan, read_study
    from ..studies.record import StudyError
    from .study_progress import show_progress

    if slurm and engine != "slurm":
        raise StudyError("--slurm says what SLURM's jobs take, and is for --engine slurm")
    try:
        written = read_study(file, cohort=cohort, bundle_root=bundle_root)
        place = output or Path("runs", written.name)
        if final is not None:
            written, place = final_study(written, place, final)
        with claimed(place):
            folder = StudyFolder(place, written, plan(written, place, final), write=not dry_run)
            waiting = [folder.run_file(run.id) for run in folder.to_run()]
            say(f"{written.name}: {len(waiting)} of {len(folder.planned)} runs to do, in {place}")
            if dry_run:
                for run in folder.to_run():
                    say(run.id)
                return
            open_study_run(written, folder)
            tables_at = None
            try:
                with show_progress(folder) as (begins, ends):
                    if engine == "ray":
                        engines.run_by_ray(waiting, begins, ends, address, cpus, gpus)
                    elif engine == "slurm":
                        engines.run_by_slurm(waiting, begins, ends, slurm or [], cpus, gpus)
                    else:
                        engines.run_locally(waiting, begins, ends, workers)
                tables_at = _tables_of(place)
            finally:  # interrupted too
                close_study_run(written, folder, tables_at)
    except KeyboardInterrupt:
        raise StudyError(f"interrupted; the same command goes on with the study in {place}") from None
    counts = folder.counts()
    if counts["finished"] < len(folder.planned):
        raise StudyError(f"{counts['failed']} of {len(folder.planned)} runs failed; run the study again to repeat them")


def _tables_of(place: Path) -> Path | None:
    """A study's tables, written; None, with a word why, where nothing can be said yet."""
    from ..studies.tables import write_tables

    try:
        written = write_tables([place])
    except (UserError, ValueError) as error:
        say(str(error), "no tables:")
        return None
    show_study(written.table, written.verdicts)
    return written.paths[0].parent


def mlflow_sync(
    output_dir: Annotated[Path, Argument(help="The output_dir of a training or evaluation.")],
    tracking_uri: Annotated[str | None,
        Option(help="Where to send to, if not to where the run was meant to go.")] = None,
) -> None:  # fmt: skip
    """Send what MLflow did not take while it was away; twice changes nothing."""
    from ..tracking.sync import sync

    done = sync(output_dir, tracking_uri)
    if not done:
        say(f"nothing to send in {output_dir}")
    for run in done:
        state = f"run {run.run_id}, {run.status}" if run.run_id else "[yellow]left alone[/], its process still runs"
        console.print(f"{plain(run.name)}: {state}", highlight=False, soft_wrap=True)
        for reason in run.refused:
            say(reason, "not sent")


def register(
    output_dir: Annotated[Path, Argument(help="The output_dir of a tracked training that was evaluated.")],
    name: Annotated[str, Option(help="Name of the registered model.")],
    split: Annotated[str, Option(help="Split whose evaluation judges the version.")] = "test",
    checkpoint: Annotated[Path | None, Option(help="The checkpoint; else the evaluated one.")] = None,
    tracking_uri: Annotated[str | None, Option(help="MLflow store; else the one the training used.")] = None,
    bundle_root: Annotated[Path | None, Option(help="Folder of another bundle than the one that came along.")] = None,
) -> None:
    """Register an evaluated checkpoint in MLflow; it becomes `champion` when its P is higher and its gap not worse."""
    from ..tracking.registry import register_output

    registered = register_output(output_dir, name, bundle_folder(bundle_root), split, checkpoint, tracking_uri)
    outcome = "now the champion" if registered.decision.champion else "not the champion"
    say(f"{name} version {registered.version}: {outcome} ({registered.decision.reason})")
