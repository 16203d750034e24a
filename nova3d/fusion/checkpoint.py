"""What a fit needs to go on from a step: in memory after divergence, on disk after an interruption."""

import copy
import hashlib
import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nova3d import config as configs
from nova3d.errors import InputError, first_line, system_reason
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.state import FusionState
from nova3d.utils.files import replacing
from nova3d.utils.provenance import hash_json
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

_EARLIER_KEYS = {"residual": "mean_residual", "rate": "rate_scale", "falls": "restarts"}  # of files of earlier releases


@dataclass
class Snapshot:
    """A copy of a fit's counters and of everything that is trained. The names are the keys of the file.

    The counters are those of `FusionState`. tensors: the state of every module by name, of the optimiser, and what rays
    are drawn from ("scene").
    """

    step: int
    seconds: float
    mean_residual: float
    rate_scale: float
    restarts: int
    history: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(state: FusionState) -> "Snapshot":
        """Copy a state."""
        tensors = {"optimizer": state.optimizer.state_dict()}
        tensors |= {name: module.state_dict() for name, module in state.modules().items()}
        tensors["scene"] = {
            "cache": state.cached_sdf,
            "hull": state.hull.distance,
            "margin": state.margin,
            "carved_at": state.carved_at,
            "open_levels": state.sdf.open_levels,
        }
        return Snapshot(
            state.step,
            state.seconds,
            state.mean_residual,
            state.rate_scale,
            state.restarts,
            list(state.history),
            copy.deepcopy(tensors),
        )

    def restore(self, state: FusionState) -> None:
        """Copy this into a state of the same views and config."""
        tensors = copy.deepcopy(self.tensors)
        scene = tensors["scene"]
        state.step, state.seconds, state.history = self.step, self.seconds, list(self.history)
        state.mean_residual, state.rate_scale, state.restarts = self.mean_residual, self.rate_scale, self.restarts
        state.margin, state.hull.distance, state.cached_sdf = scene["margin"], scene["hull"], scene["cache"]
        state.sdf.open_levels, state.carved_at = scene["open_levels"], scene["carved_at"]
        if len(state.cached_sdf):
            state.occupancy, state.box = state.hull.occupancy(state.margin), state.hull.bounds(state.margin)
        # The groups' settings are those of the config; a file of an earlier release lacks some.
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": tensors["optimizer"]["state"], "param_groups": groups})
        for name, module in state.modules().items():
            module.load_state_dict(tensors[name])

    def save(
        self,
        path: Path,
        config: FusionConfig,
        views: ViewSet,
        detail: ViewSet | None = None,
        diverged: bool = False,
    ) -> None:
        """Write a file that `load` accepts for the same config and views.

        Args:
            path: the file.
            config: of the fit.
            views: of the fit.
            detail: of the fit.
            diverged: whether the fit failed: the file is then accepted with other learning rates too.

        Raises:
            InputError: where it cannot be written.
        """
        key = _config_key(config, rates=not diverged)
        content = vars(self) | {"config": key, "views": _fingerprint(views, detail)}
        try:
            with replacing(path) as aside:
                torch.save(content, aside)
        except OSError as error:
            raise InputError(f"cannot save the fit to '{path}': {system_reason(error)}") from error

    @staticmethod
    def load(path: Path, state: FusionState, detail: ViewSet | None = None) -> bool:
        """Restore a state from a file where it is of this very run; otherwise log why it is not.

        Args:
            path: the file, which may be missing.
            state: a fit that has not begun.
            detail: of the fit.

        Returns:
            Whether the state was restored.
        """
        if not path.is_file():
            return False
        try:
            content = torch.load(path, map_location=state.device, weights_only=True)
            config, views = content.pop("config"), content.pop("views")
            snapshot = Snapshot(**{_EARLIER_KEYS.get(key, key): value for key, value in content.items()})
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
            log.warning("'%s' cannot be read (%s): starting anew", path, first_line(error))
            return False
        keys = [_config_key(state.config, rates) for rates in (True, False)]
        other = "" if config in keys else "config"
        other = other or ("set of views" if views != _fingerprint(state.views, detail) else "")
        if other:
            log.warning("'%s' is of another %s: starting anew", path, other)
            return False
        snapshot.restore(state)
        log.info("going on from step %d of '%s'", snapshot.step, path)
        return True


def _config_key(config: FusionConfig, rates: bool = True) -> str:
    """A hash of all settings that change the fit; those of extraction, texture and the time budget do not.

    rates: whether the learning rates `optim.lr_*` count.
    """
    plain = configs.to_dict(config)
    kept = {name: part for name, part in plain.items() if name not in ("extract", "texture")}
    ignored = [name for name in kept["optim"] if name == "time_budget" or (name.startswith("lr_") and not rates)]
    kept["optim"] = {name: value for name, value in kept["optim"].items() if name not in ignored}
    return hash_json(kept)


def _fingerprint(views: ViewSet, detail: ViewSet | None) -> str:
    digest = hashlib.sha256()
    for part in (views, detail) if detail else (views,):
        for tensor in (part.rgb, part.normals, part.mask, part.cameras.c2w, part.cameras.intrinsics):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(repr((views.trusted, views.calibration)).encode())
    return digest.hexdigest()
