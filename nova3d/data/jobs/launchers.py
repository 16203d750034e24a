"""Launchers of a render job: this machine, one task of a SLURM array, or the actors of a Ray cluster.

A share is (i, n): the objects whose uid's hash is i modulo n. Shares need no coordination. Each has its own journal,
status and temporary files, and all run the same scheduler.
"""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nova3d.data.jobs import devices, journal
from nova3d.data.jobs.config import GPU_DEVICES, RenderConfig, parse_shard
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.policy import RenderTask
from nova3d.data.jobs.scheduler import RunSummary, Scheduler, Stop, TaskQueue, scratch_folder
from nova3d.data.sources import Asset, make_source
from nova3d.errors import InputError, first_line, system_reason
from nova3d.utils.plugins import import_modules, imported
from nova3d.utils.progress import Progress
from nova3d.utils.provenance import stable_hash

log = logging.getLogger(__name__)
Share = tuple[int, int]
_POLL_SECONDS = 2.0
_ACTOR_RESTARTS = 2


def launch(config: RenderConfig, assets: list[Asset], progress: Progress | None, stop: Stop) -> RunSummary:
    """Render `assets`, or this process's share of them, with the launcher that `config.pool.launcher` names."""
    if config.pool.launcher == "ray":
        return run_on_ray(config, assets, progress, stop)
    shard, slurm = config.pool.shard, config.pool.launcher == "slurm"
    return run_share(config, assets, slurm_share(shard, os.environ) if slurm else parse_shard(shard), progress, stop)


def run_share(
    config: RenderConfig, assets: list[Asset], share: Share, progress: Progress | None, stop: Stop, schedulers: int = 1
) -> RunSummary:
    """Render what is left of one share on this machine, where `schedulers` shares run at a time.

    Args:
        config: the job's.
        assets: all objects of the plan.
        share: which of them are rendered.
        progress: called as (objects with a result, objects, line) after every attempt.
        stop: checked all the time; objects in flight are finished.
        schedulers: how many shares run on this machine, which divides its cores and its memory among them.

    Returns:
        What was done; `ended` is the reason of `stop`.

    Raises:
        InputError: where the engine's program or a GPU is missing, no worker can go on or the disk cannot be written;
            what was rendered before stays.
    """
    out, name, mine = Path(config.out), share_name(share), in_share(assets, share)
    found = journal.outcomes(out, mine, config.pool.strikes)
    tasks = [RenderTask(a, failures=found[a.uid].attempts) for a in mine if found[a.uid].state == "waiting"]
    tasks.sort(key=lambda task: task.failures)  # what failed before comes last
    log.info("%d of %d objects to render", len(tasks), len(mine))
    if not tasks:
        return RunSummary()
    devices.check_engine(config.engine)
    fetch, slots = make_source(config.source).fetch, devices.slots(config, schedulers)
    try:
        with contextlib.closing(journal.Journal(out, name)) as rows, scratch_folder(config, name) as scratch:
            for part in (out / "objects").glob(f"*/*.{name}-*.part"):  # of a worker that was killed
                part.unlink()
            queue = TaskQueue(config, tasks, rows, Fetcher(fetch, scratch / "fetch"))
            Scheduler(config, slots, name, queue, scratch, progress).run(stop)
    except OSError as error:
        raise InputError(f"cannot go on in '{out}': {system_reason(error)}; run again to resume") from error
    if queue.fatal:
        raise InputError(f"{queue.fatal}; {queue.summary} so far, run again to resume")
    return replace(queue.summary, ended=stop.reason)


def in_share(assets: list[Asset], share: Share) -> list[Asset]:
    """Return the assets of a share, in their order."""
    index, count = share
    return [asset for asset in assets if stable_hash(asset.uid) % count == index]


def share_name(share: Share) -> str:
    """Return the name of a share's journal and status."""
    index, count = share
    return "local" if count == 1 else f"share-{index:03d}-of-{count:03d}"


def slurm_share(shard: str | None, environment: Mapping[str, str]) -> Share:
    """Return `shard` where it is given, else this task's place in its job array or among the tasks of `srun`."""
    if shard:
        return parse_shard(shard)
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{k}", d)) for k, d in (("MIN", "0"), ("STEP", "1")))
            index = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
            return parse_shard(f"{index}/{environment['SLURM_ARRAY_TASK_COUNT']}")
        return parse_shard(f"{environment['SLURM_PROCID']}/{environment['SLURM_NTASKS']}")
    except (KeyError, ValueError) as error:
        raise InputError(f"pool.launcher=slurm outside a SLURM job (no {error}); give pool.shard=i/n") from error


class ShareActor:
    """A Ray actor that renders one share on the GPU that Ray gave it.

    Relative paths start from `folder`, where `modules` of a user's own are looked up, too (`nova3d.utils.plugins`).
    """

    def __init__(self, folder: str, modules: Sequence[str] = ()) -> None:
        os.chdir(folder)
        import_modules(modules)
        self._stop = Stop()

    def run(self, config: RenderConfig, assets: list[Asset], share: Share) -> RunSummary:
        """Render the share."""
        import ray

        pool, schedulers = replace(config.pool, workers=1), devices.core_count()
        if config.engine.device in GPU_DEVICES:
            pool = replace(config.pool, gpus=[str(int(gpu)) for gpu in ray.get_gpu_ids()])
            schedulers = len(devices.list_gpus())
        return run_share(replace(config, pool=pool), assets, share, None, self._stop, min(schedulers, share[1]))

    def drain(self, reason: str) -> None:
        """Have `run` finish what is in flight and return."""
        self._stop.reason = reason


def run_on_ray(config: RenderConfig, assets: list[Asset], progress: Progress | None, stop: Stop) -> RunSummary:
    """Render on a Ray cluster: one actor per GPU (per worker on the CPU), each with its share.

    Ray restarts an actor that dies, and its share goes on where it was. All nodes must see this folder, `config.out`
    and local meshes under the same paths.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("pool.launcher=ray needs a package: pip install 'nova3d[ray]'") from error
    if not ray.is_initialized():
        ray.init(address=config.pool.ray_address, include_dashboard=False, log_to_driver=False)
    on_gpu = config.engine.device in GPU_DEVICES
    resources = ray.cluster_resources()
    count = int(resources.get("GPU", 0)) if on_gpu else config.pool.workers or int(resources["CPU"])
    if count == 0:
        raise InputError("the Ray cluster has no GPU; use engine.device=cpu")
    # max_concurrency: `drain` is called while `run` runs. A GPU actor takes no CPU, which others may wait for.
    options = {"num_gpus": int(on_gpu), "num_cpus": int(not on_gpu), "max_concurrency": 2}
    actor_class = ray.remote(ShareActor).options(
        **options, max_restarts=_ACTOR_RESTARTS, max_task_retries=_ACTOR_RESTARTS
    )
    actors = [actor_class.remote(str(Path.cwd()), imported()) for _ in range(count)]
    log.info("%d Ray actors, one share each", count)
    runs = [actor.run.remote(config, assets, (i, count)) for i, actor in enumerate(actors)]
    return _wait_for_actors(ray, config, actors, runs, progress, stop)


def _wait_for_actors(
    ray: Any, config: RenderConfig, actors: list[Any], runs: list[Any], progress: Progress | None, stop: Stop
) -> RunSummary:
    """Wait for the actors, pass on a stop, add up what they did. Raises InputError where shares could not go on."""
    names = {share_name((i, len(runs))) for i in range(len(runs))}
    waiting, errors, summary = list(runs), [], RunSummary()
    while waiting:
        ended, waiting = ray.wait(waiting, timeout=_POLL_SECONDS)
        for run in ended:
            try:
                done = ray.get(run)
                summary.states += done.states
                summary.reasons += done.reasons
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, InputError):
                    raise
                errors.append(str(error.cause))
            except ray.exceptions.RayActorError as error:
                errors.append(f"an actor died: {first_line(error)}")
        if stop.reason:
            for actor in actors:  # every time: an actor that Ray has restarted meanwhile does not know
                actor.drain.remote(stop.reason)
        if progress:
            shown = [s for s in journal.read_status(Path(config.out)) if s["name"] in names]
            count = sum(sum(s["counts"].values()) for s in shown)
            at_work = sum(s["live"] for s in shown)
            progress(count, sum(s["planned"] for s in shown), f"rendering, {at_work} shares at work")
    for actor in actors:
        ray.kill(actor)
    if errors:
        raise InputError(f"{len(errors)} of {len(runs)} shares could not go on: {errors[0]}")
    return replace(summary, ended=stop.reason)
