"""One object of the references, ready to score any prediction of it: a judge per kind of the protocol.

A judge reads the reference once. Its errors are the references' fault; those of `score` are the prediction's.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol as Interface

from nova3d.evaluation import baselines as floors
from nova3d.evaluation import mesh_metrics as meshes
from nova3d.evaluation.folders import Submission
from nova3d.evaluation.mesh_scores import Reference, score_meshes, score_unit
from nova3d.evaluation.protocols import Protocol
from nova3d.evaluation.rerender import rerender
from nova3d.evaluation.view_scores import Networks, check_rig, image_row, score_views

Row = dict[str, float]


class Judge(Interface):
    """missing: column -> why it could not be computed, filled while scoring."""

    missing: dict[str, str]

    def score(self, prediction: Submission) -> Row:
        """Column -> value. Raises InputError where the prediction is missing or unusable."""
        ...

    def nothing(self) -> Row:
        """What a prediction that failed scores: as if nothing had been returned."""
        ...

    def floors(self) -> Iterator[tuple[str, Row]]:
        """Name and row of every floor."""
        ...


class ViewJudge:
    """Predicted views against reference views."""

    def __init__(self, name: str, references: Submission, protocol: Protocol, networks: Networks):
        self.name, self.rules, self.networks = name, protocol.views, networks
        self.missing: dict[str, str] = {}
        self.hull_cells = protocol.hull_cells
        self.ref = references.views(name, self.rules)
        check_rig(self.ref, self.rules, name)

    def score(self, prediction: Submission) -> Row:
        return score_views(prediction.views(self.name, self.rules), self.ref, self.rules, self.networks, self.name)

    def nothing(self) -> Row:
        return score_views(floors.all_white(self.ref), self.ref, self.rules, self.networks, self.name)

    def floors(self) -> Iterator[tuple[str, Row]]:
        for label, views in floors.view_floors(self.ref, self.rules.shifts, self.hull_cells):
            rules = replace(self.rules, include_input_view=False) if label == floors.COPY else self.rules
            yield label, score_views(views, self.ref, rules, self.networks, self.name)


class MeshJudge:
    """A predicted surface against a reference surface."""

    def __init__(self, name: str, references: Submission, protocol: Protocol):
        self.name, self.rules, self.seed = name, protocol.meshes, protocol.seed
        self.missing: dict[str, str] = {}
        self.hull_cells = protocol.hull_cells
        self.ref = Reference.of(meshes.read_surface(references.mesh(name)), self.rules, self.seed)

    def score(self, prediction: Submission) -> Row:
        row, missing = score_meshes(meshes.read_surface(prediction.mesh(self.name)), self.ref, self.rules, self.seed)
        self.missing |= missing
        return row

    def nothing(self) -> Row:
        return score_unit(floors.speck(), self.ref, self.rules, self.seed)[0]

    def floors(self) -> Iterator[tuple[str, Row]]:
        for label, mesh in floors.mesh_floors(self.ref.mesh, self.hull_cells):
            yield label, score_unit(mesh, self.ref, self.rules, self.seed)[0]


class TextureJudge:
    """Pictures of a predicted textured mesh against pictures of the reference, drawn alike."""

    def __init__(self, name: str, references: Submission, protocol: Protocol, networks: Networks, device: str):
        self.name, self.rules, self.networks, self.device = name, protocol.textures, networks, device
        self.missing: dict[str, str] = {}
        self.hull_cells = protocol.hull_cells
        path = references.mesh(name)
        self.to_unit = meshes.to_unit(meshes.read_surface(path))
        self.ref = rerender(path, self.to_unit, self.rules, device)

    def score(self, prediction: Submission) -> Row:
        pictures = rerender(prediction.mesh(self.name), self.to_unit, self.rules, self.device)
        return image_row(pictures, self.ref, self.rules.metrics, self.networks)

    def nothing(self) -> Row:
        return image_row(floors.all_white(self.ref), self.ref, self.rules.metrics, self.networks)

    def floors(self) -> Iterator[tuple[str, Row]]:
        for label, views in floors.view_floors(self.ref, (1,), self.hull_cells):
            scored = slice(1 if label == floors.COPY else 0, None)
            yield label, image_row(views[scored], self.ref[scored], self.rules.metrics, self.networks)


def judges(
    kinds: tuple[str, ...], name: str, references: Submission, protocol: Protocol, networks: Networks, device: str
) -> list[Judge]:
    """The judges of one object, one per kind. Raises InputError naming what is wrong with the reference."""
    made: list[Judge] = []
    if "views" in kinds:
        made.append(ViewJudge(name, references, protocol, networks))
    if "meshes" in kinds:
        made.append(MeshJudge(name, references, protocol))
    if "textures" in kinds:
        made.append(TextureJudge(name, references, protocol, networks, device))
    return made
