"""What a fit needs to go on from a step: in memory after a fall, on disk after an interruption."""

import contextlib
import copy
import hashlib
import logging
import os
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.objective import Scene
from nova3d.fusion.state import Fit
from nova3d.utils.provenance import hash_json
from nova3d.views import ViewSet

log = logging.getLogger(__name__)


@dataclass
class Snapshot:
    """step: steps done. residual: the running mean colour residual. rate, falls: see `optimize.fit` on divergence.

    history: the losses so far. tensors: parameters and optimiser, empty for the run in progress.
    """

    step: int = 0
    seconds: float = 0.0
    residual: float = 0.0
    rate: float = 1.0
    falls: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)

    def copy(self, state: Fit, scene: Scene, optimizer: torch.optim.Optimizer) -> "Snapshot":
        """This run's counters with a copy of everything that is trained."""
        tensors = {"optimizer": optimizer.state_dict()} | {n: m.state_dict() for n, m in state.modules().items()}
        tensors["scene"] = {
            "cache": scene.cache,
            "hull": state.hull.distance,
            "margin": state.margin,
            "carved_at": scene.carved_at,
            "open_levels": state.sdf.open_levels,
        }
        return replace(self.detached(), tensors=copy.deepcopy(tensors))

    def detached(self) -> "Snapshot":
        """The counters alone, to run on from."""
        return replace(self, history=list(self.history), tensors={})

    def restore(self, state: Fit, scene: Scene, optimizer: torch.optim.Optimizer) -> None:
        """Put the tensors back, and what was drawn from them: the hull by the poses then, and the cached SDF."""
        tensors = copy.deepcopy(self.tensors)
        seen = tensors["scene"]
        state.step, state.margin, state.hull.distance = self.step, seen["margin"], seen["hull"]
        state.sdf.open_levels, scene.carved_at, scene.cache = seen["open_levels"], seen["carved_at"], seen["cache"]
        if len(scene.cache):
            scene.occupancy, scene.box = state.hull.occupancy(state.margin), state.hull.extent(state.margin)
        optimizer.load_state_dict(tensors["optimizer"])
        for name, module in state.modules().items():
            module.load_state_dict(tensors[name])

    def save(self, path: Path, config: FusionConfig, views: ViewSet | None) -> None:
        """Write beside `path` and rename. `views` None: they are not checked when this is loaded.

        Raises InputError where it cannot be written.
        """
        content = vars(self) | {"config": _key(config), "views": _fingerprint(views) if views else None}
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, aside)
            aside.replace(path)
        except OSError as error:
            raise InputError(f"cannot save the fit to '{path}': {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):  # of a folder that is none, which is already being said
                aside.unlink(missing_ok=True)

    @staticmethod
    def load(
        path: Path, state: Fit, scene: Scene, optimizer: torch.optim.Optimizer, views: ViewSet
    ) -> "Snapshot | None":
        """Restore from `path` where it holds this very run; otherwise say why not and return None."""
        if not path.is_file():
            return None
        try:
            content = torch.load(path, map_location=views.mask.device, weights_only=True)
            found = content.pop("config"), content.pop("views")
            snapshot = Snapshot(**content)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]  # an EOFError says nothing
            log.warning("'%s' cannot be read (%s): starting anew", path, reason)
            return None
        other = "config" if found[0] != _key(state.config) else ""
        other = other or ("set of views" if found[1] not in (None, _fingerprint(views)) else "")
        if other:
            log.warning("'%s' is of another %s: starting anew", path, other)
            return None
        snapshot.restore(state, scene, optimizer)
        log.info("going on from step %d of '%s'", snapshot.step, path)
        return snapshot.detached()


def _key(config: FusionConfig) -> str:
    """Of all that changes the fit; extraction, texture and the time budget do not."""
    plain = configs.to_dict(config)
    kept = {name: part for name, part in plain.items() if name not in ("extract", "texture")}
    kept["optim"] = {name: value for name, value in kept["optim"].items() if name != "time_budget"}
    return hash_json(kept)


def _fingerprint(views: ViewSet) -> str:
    digest = hashlib.sha256()
    for tensor in (views.rgb, views.normals, views.mask, views.cameras.c2w, views.cameras.intrinsics):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
