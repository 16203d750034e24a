"""Procedural objects: made-up household things, drawn by number from a few families of shapes.

In the manner of Zeroverse (LRM-Zero, Xie et al. 2024) and MegaSynth (Jiang et al. 2024), which train reconstruction on
shapes without meaning. Here the proportions are those of things that people photograph: upright, on the ground, with a
front that differs from the back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import numpy as np
import torch
import trimesh
from numpy.random import Generator
from numpy.typing import ArrayLike
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from nova3d.data.procedural.prints import Palette, back_label, front_label, make_palette, noise, pattern
from nova3d.data.procedural.surfaces import (
    BOX_CELLS,
    SHAPES,
    Floats,
    Primitive,
    Shape,
    Surface,
    fillet,
    on_curve,
    revolve,
    rotation,
    rounded_box,
    soft_union,
    tube,
)
from nova3d.images import srgb_to_linear

_TEXTURE = 256  # pixels of a texture's side


class Section(TypedDict, total=False):
    """The cross-section of a turned form, as `revolve` takes it."""

    section: float
    depth: float
    flutes: int
    flute: float


@dataclass(frozen=True)
class Piece:
    """A surface with its texture; None where the surface has colours of its own."""

    surface: Surface
    texture: Image.Image | None

    def moved(self, shift: ArrayLike = (0, 0, 0), scale: ArrayLike = 1.0, turn: Floats | None = None) -> "Piece":
        """Return the piece moved by `Surface.moved`."""
        return replace(self, surface=self.surface.moved(shift, scale, turn))


def make_object(seed: int, number: int, kind: str | None = None) -> trimesh.Scene:
    """Make an object.

    Args:
        seed: of the collection.
        number: of the object in it.
        kind: a key of KINDS; None draws one.

    Returns:
        A scene of textured meshes with normals. The object stands on y = 0, its longest side is 1, its front faces +Z.
        Equal arguments give equal scenes.
    """
    rng = np.random.default_rng([seed, number])
    names = list(KINDS)
    shares = np.array([share for _, share in KINDS.values()])
    drawn = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    pieces = KINDS[kind or drawn][0](rng)
    if rng.random() < 0.4:
        turn = rotation("y", float(rng.uniform(-0.8, 0.8)))
        pieces = [piece.moved(turn=turn) for piece in pieces]
    scene = trimesh.Scene()
    for index, piece in enumerate(_place(pieces)):
        scene.add_geometry(_mesh(piece), node_name=f"part{index}", geom_name=f"part{index}")
    return scene


def _place(pieces: list[Piece]) -> list[Piece]:
    """Pieces centred above the origin, on the ground, with a longest side of 1."""
    low = np.min([piece.surface.vertices.min(axis=0) for piece in pieces], axis=0)
    high = np.max([piece.surface.vertices.max(axis=0) for piece in pieces], axis=0)
    scale = 1 / float((high - low).max())
    middle = (low + high) / 2
    shift = -scale * np.array([middle[0], low[1], middle[2]])
    return [piece.moved(shift=shift, scale=scale) for piece in pieces]


def _mesh(piece: Piece) -> trimesh.Trimesh:
    surface = piece.surface
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, vertex_normals=surface.normals, process=False)
    if surface.colours is not None:
        linear = srgb_to_linear(torch.from_numpy(surface.colours)).numpy()  # as glTF's vertex colours are
        opaque = np.concatenate([linear, np.ones((len(linear), 1))], axis=1)
        mesh.visual = ColorVisuals(mesh, vertex_colors=np.round(255 * opaque).astype(np.uint8))
    else:
        material = PBRMaterial(baseColorTexture=piece.texture, metallicFactor=0.0, roughnessFactor=0.8)
        mesh.visual = TextureVisuals(uv=surface.uv, material=material)
    return mesh


def _paste(texture: Image.Image, label: Image.Image, u: float, v: float) -> None:
    """Print a label with its centre at (u, v)."""
    x, y = round(u * texture.width - label.width / 2), round((1 - v) * texture.height - label.height / 2)
    texture.paste(label, (x, y), label)


def _around(
    rng: Generator, palette: Palette, band: tuple[float, float], aspect: float, labelled: bool = True
) -> Image.Image:
    """A texture for a surface of revolution: a pattern, mostly a front label, sometimes a back label and stripes.

    Args:
        rng: decides what is printed.
        palette: the colours.
        band: the span of v that labels may take.
        aspect: height of the whole profile relative to its circumference, for letters of natural proportions.
        labelled: whether there may be labels.
    """
    texture = pattern(rng, _TEXTURE, _TEXTURE, palette)
    low, high = band
    if rng.random() < 0.35:
        stripe = round((1 - high) * _TEXTURE), round((1 - high + rng.uniform(0.05, 0.25) * (high - low)) * _TEXTURE)
        texture.paste(palette.accent, (0, stripe[0], _TEXTURE, max(stripe[1], stripe[0] + 1)))
    if labelled and rng.random() < 0.85:
        tall = max(8, round((high - low) * rng.uniform(0.5, 0.9) * _TEXTURE))
        wide = round(rng.uniform(0.2, 0.4) * _TEXTURE)
        label = front_label(rng, wide, max(8, round(tall * min(aspect, 3.0))), palette).resize((wide, tall))
        middle = (low + high) / 2
        _paste(texture, label, 0.5, middle)
        if rng.random() < 0.6:
            back = back_label(rng, wide // 2 * 2, tall, palette)
            _paste(texture, back, 0.0, middle)  # half of it on either side of the seam
            _paste(texture, back, 1.0, middle)
    return texture


def _turn(
    rng: Generator, corners: Sequence[tuple[float, ...]], side: tuple[int, int], radius: float, **shape: Unpack[Section]
) -> Piece:
    """A surface of revolution whose labels lie between two corners of its profile.

    Args:
        rng: decides what is printed.
        corners: the profile, (radius, height).
        side: the corners between which labels lie.
        radius: of the rounded corners.
        shape: the cross-section.
    """
    curve, lengths = fillet(corners, radius)
    surface = revolve(curve, **shape)
    total = np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()
    circumference = 2 * np.pi * max(corner[0] for corner in corners)
    band = float(lengths[side[0]]), float(lengths[side[1]])
    texture = _around(rng, make_palette(rng), (min(band), max(band)), total / circumference)
    return Piece(surface, texture)


def _plain(rng: Generator, surface: Surface, palette: Palette) -> Piece:
    return Piece(surface, pattern(rng, 64, 64, palette))


def _trim(rng: Generator, body: Piece) -> Image.Image:
    """The texture of a handle or a spout: mostly the body's colours, else others."""
    if body.texture and rng.random() < 0.6:
        return body.texture.resize((8, 8))
    return pattern(rng, 32, 32, make_palette(rng))


def _section(rng: Generator) -> Section:
    """A cross-section: mostly round, else squarish, flattened or fluted."""
    kind = rng.choice(["round", "square", "flat", "fluted"], p=[0.6, 0.17, 0.13, 0.1])
    if kind == "square":
        return {"section": float(rng.uniform(3, 7)), "depth": float(rng.uniform(0.5, 1.0))}
    if kind == "flat":
        return {"depth": float(rng.uniform(0.35, 0.8))}
    if kind == "fluted":
        return {"flutes": int(rng.integers(6, 15)), "flute": float(rng.uniform(0.02, 0.08))}
    return {}


def can(rng: Generator) -> list[Piece]:
    """A can, tub or tin with a rim and a recessed lid."""
    r, rim = float(rng.uniform(0.18, 0.75)), float(rng.uniform(0.92, 1.05))
    lid = 1 - float(rng.uniform(0.02, 0.06))
    corners = [
        (0, 0.0),
        (0.9 * r, 0),
        (r, 0.05),
        (r, 0.94),
        (rim * r, 0.95),
        (rim * r, 1),
        (0.9 * r, 1),
        (0.86 * r, lid),
    ]
    return [_turn(rng, [*corners, (0, lid)], (2, 3), 0.03, **_section(rng))]


def bottle(rng: Generator) -> list[Piece]:
    """A bottle or a flask with a shoulder, a neck and a cap of another colour."""
    r, neck = float(rng.uniform(0.12, 0.3)), float(rng.uniform(0.05, 0.11))
    neck = min(neck, 0.8 * r)
    shoulder, throat = float(rng.uniform(0.45, 0.7)), float(rng.uniform(0.72, 0.84))
    waist = float(rng.uniform(0.85, 1.1)) * r
    body = [(0, 0.0), (0.95 * r, 0), (r, 0.04), (waist, shoulder / 2), (r, shoulder), (neck, throat), (neck, 0.88)]
    shape = _section(rng)
    pieces = [_turn(rng, [*body, (0, 0.88)], (2, 4), float(rng.uniform(0.04, 0.15)), **shape)]
    wide = neck * float(rng.uniform(1.1, 1.6))
    cap, _ = fillet([(0, 0.86), (wide, 0.86), (wide * float(rng.uniform(0.7, 1.0)), 1.0), (0, 1.0)], 0.02)
    pieces.append(_plain(rng, revolve(cap, 32, depth=shape.get("depth", 1.0)), make_palette(rng)))
    return pieces


def vase(rng: Generator) -> list[Piece]:
    """A turned form with a free profile: a vase, a lamp's foot, a spinning top, an ornament."""
    count = int(rng.integers(3, 7))
    radii = rng.uniform(0.12, 0.5, count)
    heights = np.linspace(0, 1, count) * float(rng.uniform(0.5, 1.3))
    side = on_curve(np.stack([radii, heights], axis=1), 20)
    top = float(heights[-1])
    corners = [(0.0, 0.0), *map(tuple, side.tolist())]
    if rng.random() < 0.5:  # open, with an inside
        rim = float(radii[-1]) * 0.85
        corners += [(rim, top), (0.8 * rim, top - 0.25), (0.0, top - 0.3)]
    else:
        corners += [(0.0, top + float(rng.uniform(0, 0.15)))]
    return [_turn(rng, corners, (3, 18), 0.02, **_section(rng))]


def cup(rng: Generator) -> list[Piece]:
    """A bowl, cup, mug or jug: open, with a wall, often with one or two handles."""
    r, height = float(rng.uniform(0.25, 0.6)), float(rng.uniform(0.25, 1.0))
    foot, wall = r * float(rng.uniform(0.5, 1.05)), float(rng.uniform(0.03, 0.06))
    belly = (r + foot) / 2 * float(rng.uniform(0.9, 1.25))
    outside = on_curve([(foot, 0), (belly, height / 2), (r, height)], 12)
    inside = outside[::-1][:-2] - [wall, 0]
    floor = 0.06 * height + wall
    inside[:, 1] = np.maximum(inside[:, 1], floor)
    corners = [
        (0.0, 0.0),
        *map(tuple, outside.tolist()),
        *map(tuple, np.maximum(inside, [0.02, 0]).tolist()),
        (0.0, floor),
    ]
    pieces = [_turn(rng, corners, (2, 11), 0.02)]
    if rng.random() < 0.65 and height > 0.4:
        angle = float(rng.choice([0.0, 0.4, -0.4])) + np.pi / 2 * float(rng.choice([1, -1]))
        turns = [angle, angle + np.pi] if rng.random() < 0.2 else [angle]
        reach, thick = float(rng.uniform(0.2, 0.4)) * height, float(rng.uniform(0.035, 0.07))
        arc = np.linspace(-np.pi / 2, np.pi / 2, 16)
        path = np.stack([belly * 0.93 + reach * np.cos(arc), height * (0.52 + 0.33 * np.sin(arc)), 0 * arc], axis=1)
        texture = _trim(rng, pieces[0])
        handle = tube(path, thick, (0, 0, 1), flat=float(rng.uniform(0.8, 1.6)))
        pieces += [Piece(handle, texture).moved(turn=rotation("y", turn)) for turn in turns]
    return pieces


def carton(rng: Generator) -> list[Piece]:
    """A box with a printed front, back and sides: a carton, a book, a device."""
    height = 1.0
    wide, deep = float(rng.uniform(0.35, 1.4)), float(rng.uniform(0.15, 0.9))
    surface = rounded_box((wide, height, deep), float(rng.choice([0.01, 0.03, 0.1, 0.2])))
    return [Piece(surface, _carton_print(rng, make_palette(rng), (wide, height, deep)))]


def _carton_print(rng: Generator, palette: Palette, size: tuple[float, float, float]) -> Image.Image:
    """The atlas of a box: one pattern for all sides or one for each, the front and the back labelled."""
    side = _TEXTURE // 2
    atlas = Image.new("RGB", (3 * side, 2 * side))
    shared = pattern(rng, side, side, palette) if rng.random() < 0.7 else None
    extents = {"front": size[:2], "back": size[:2], "left": size[2:0:-1], "right": size[2:0:-1]}
    for name, (column, row) in BOX_CELLS.items():
        cell = shared.copy() if shared else pattern(rng, side, side, palette)
        share = {"front": 0.9, "back": 0.7, "left": 0.35, "right": 0.35}.get(name, 0.15)
        if rng.random() < share:
            aspect = extents.get(name, (1.0, 1.0))
            shape = np.array(aspect) / max(aspect)
            wide, tall = (max(12, round(side * float(part))) for part in shape)
            maker = back_label if name in ("back", "left") else front_label
            label = maker(rng, wide, tall, palette).resize([round(side * float(rng.uniform(0.55, 0.92)))] * 2)
            _paste(cell, label, 0.5, float(rng.uniform(0.45, 0.55)))
        atlas.paste(cell, (column * side, row * side))
    return atlas


def block(rng: Generator) -> list[Piece]:
    """A superquadric: a pebble, soap, cushion or ball."""
    exponent = float(rng.uniform(1.4, 5.0))
    t = np.linspace(-np.pi / 2, np.pi / 2, 33)
    reach = (np.abs(np.cos(t)) ** exponent + np.abs(np.sin(t)) ** exponent) ** (-1 / exponent)
    curve = np.stack([np.maximum(reach * np.cos(t), 0), reach * np.sin(t)], axis=1)
    curve[[0, -1], 0] = 0
    surface = revolve(curve, 48, float(rng.uniform(1.6, 6.0)))
    scale = rng.uniform(0.35, 1.0, 3)
    texture = _around(rng, make_palette(rng), (0.3, 0.7), 0.6)
    turn = rotation("z", float(rng.uniform(-0.4, 0.4))) if rng.random() < 0.3 else None
    return [Piece(surface, texture).moved(scale=scale, turn=turn)]


def _paint(rng: Generator, primitives: Sequence[Primitive], blend: float, palette: Palette) -> Piece:
    """A soft union whose parts are painted: each in a colour, some patterned, the front of the first one marked."""
    surface, part = soft_union(primitives, blend)
    vertices = surface.vertices
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    place = (vertices - low) / (high - low).max()
    choice = rng.integers(len(palette.colours), size=int(part.max()) + 1)
    choice[0] = 0
    colours = np.array(palette.colours, np.float64)[choice[part]] / 255
    style = rng.choice(["plain", "spots", "stripes", "two tones"], p=[0.4, 0.25, 0.2, 0.15])
    if style == "spots":
        field = noise(rng, 48, 48, (2, 2))
        column, row = ((place[:, k] + 0.37 * place[:, 2]) * 47 % 47 for k in (0, 1))
        mark = field[row.astype(int), column.astype(int)] > 0.62
    elif style == "stripes":
        along = place[:, int(rng.integers(3))]
        mark = (along * int(rng.integers(4, 10)) + 0.15 * np.sin(9 * place[:, 0])) % 1 < 0.4
    elif style == "two tones":
        mark = place[:, 1] < float(rng.uniform(0.2, 0.5)) * (high - low)[1] / (high - low).max()
    else:
        mark = np.zeros(len(vertices), bool)
    colours[mark & (part == 0)] = np.array(palette.second) / 255
    first = primitives[0]
    if rng.random() < 0.6:  # a belly, a badge
        across = (vertices - first.centre) / (first.size * float(rng.uniform(0.4, 0.75)))
        badge = (np.hypot(across[:, 0], across[:, 1]) < 1) & (surface.normals[:, 2] > 0.2) & (part == 0)
        colours[badge] = np.array(palette.paper if rng.random() < 0.6 else palette.accent) / 255
    shade = 1 + 0.1 * (noise(rng, 64, 64)[(place[:, 1] * 63).astype(int), (place[:, 0] * 63).astype(int)] - 0.5)
    return Piece(replace(surface, colours=np.clip(colours * shade[:, None], 0, 1)), None)


def _primitive(
    shape: Shape,
    centre: ArrayLike,
    size: ArrayLike,
    part: int = 0,
    turn: Floats | None = None,
    hole: bool = False,
) -> Primitive:
    extent = np.broadcast_to(np.asarray(size, np.float64), 3)
    return Primitive(shape, np.asarray(centre, np.float64), extent, np.eye(3) if turn is None else turn, part, hole)


def figure(rng: Generator) -> list[Piece]:
    """A toy animal or figure, the same on the left and on the right: body, head, ears, limbs, a tail, eyes."""
    upright = rng.random() < 0.6
    body = (
        rng.uniform([0.22, 0.28, 0.18], [0.36, 0.45, 0.32])
        if upright
        else rng.uniform([0.16, 0.16, 0.35], [0.3, 0.3, 0.55])
    )
    legs = float(rng.uniform(0.08, 0.4))
    centre = np.array([0, legs + 0.85 * body[1], 0])
    head = float(rng.uniform(0.16, 0.3))
    if upright:
        neck = centre + np.array([0, body[1] + 0.6 * head, 0.05])
    else:
        neck = centre + np.array([0, 0.5 * body[1] + 0.7 * head, 0.85 * body[2]])
    skull = head * rng.uniform(0.85, 1.2, 3)
    parts = [_primitive("ellipsoid", centre, body), _primitive("ellipsoid", neck, skull, 1)]
    limb = float(rng.uniform(0.06, 0.11))
    fore_and_aft = [0.0] if upright else [-0.6 * body[2], 0.6 * body[2]]
    arms, lift = float(rng.uniform(0.15, 0.35)), float(rng.uniform(-1.2, 1.0))
    ear = rng.uniform([0.04, 0.06, 0.03], [0.1, 0.2, 0.06])
    spread = float(rng.uniform(0.5, 0.9))
    snout = float(rng.uniform(0.06, 0.13)) if rng.random() < 0.6 else 0.0
    for side in (-1.0, 1.0):
        for z in fore_and_aft:
            hip = [side * 0.6 * body[0], (legs + 0.3 * body[1]) / 2, z]
            parts.append(_primitive("cylinder", hip, (limb, (legs + 0.3 * body[1]) / 2, 0.03), 2))
            foot = [hip[0], 0.5 * limb, z + 0.6 * limb]
            parts.append(_primitive("ellipsoid", foot, (1.2 * limb, 0.6 * limb, 1.7 * limb), 3))
        if upright:
            turn = rotation("z", -side * lift)
            shoulder = centre + np.array([side * 0.9, 0.5, 0]) * body
            hand = turn @ np.array([side * arms, 0, 0])
            parts.append(_primitive("ellipsoid", shoulder + hand / 2, (0.75 * arms, 0.8 * limb, 0.8 * limb), 2, turn))
        if ear[1] > 0.08:
            place = neck + np.array([side * spread, 0.8, 0]) * head
            parts.append(_primitive("ellipsoid", place, ear, 4, rotation("z", -side * 0.4)))
    if snout:
        nose = neck + np.array([0, -0.25, 0.95]) * head
        parts.append(_primitive("ellipsoid", nose, (1.2 * snout, snout, snout), 5))
    if rng.random() < 0.5:
        tail = centre + np.array([0, 0.1, -1.15]) * body
        parts.append(_primitive("ellipsoid", tail, (0.05, 0.06, 0.16), 2, rotation("x", float(rng.uniform(0.2, 1.2)))))
    toy = _paint(rng, parts, float(rng.uniform(0.04, 0.14)), make_palette(rng))
    pieces = [toy]
    size = head * float(rng.uniform(0.14, 0.26))
    ball = revolve(np.stack([np.sin(t := np.linspace(0, np.pi, 13)), -np.cos(t)], axis=1), 20)
    for side in (-1, 1):
        for scale, out, shade in ((1.0, 0.0, 245), (0.6, 0.62, 20)):
            eye = neck + skull * np.array([side * 0.4, 0.25, 0.88]) + np.array([0, 0, out * size])
            pieces.append(Piece(ball, Image.new("RGB", (4, 4), (shade,) * 3)).moved(shift=eye, scale=scale * size))
    return pieces


def blob(rng: Generator) -> list[Piece]:
    """A soft union of a few primitives of any kind, sometimes symmetric, sometimes with holes."""
    parts: list[Primitive] = []
    symmetric = rng.random() < 0.5
    for index in range(int(rng.integers(2, 6))):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        size = rng.uniform(0.12, 0.4, 3)
        if shape == "torus":
            size[1] = 0.35 * size[0] * float(rng.uniform(0.5, 1.0))
        if shape == "cylinder":
            size[2] = 0.3 * size[:2].min()
        centre = np.zeros(3) if index == 0 else rng.uniform(-0.4, 0.4, 3) * [1, 1, 0.7]
        turn = rotation("y", float(rng.uniform(-1, 1))) @ rotation("z", float(rng.uniform(-0.8, 0.8)))
        parts.append(_primitive(shape, centre, size, index, turn))
        if symmetric and index:
            mirror = np.diag([-1.0, 1.0, 1.0])
            parts.append(_primitive(shape, mirror @ centre, size, index, mirror @ turn @ mirror))
    if rng.random() < 0.4:
        hole = rng.uniform(0.06, 0.12)
        place = [float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.1, 0.1)), 0]
        parts.append(_primitive("cylinder", place, (hole, 2.0, 0.02), 0, rotation("x", np.pi / 2), hole=True))
    return [_paint(rng, parts, float(rng.uniform(0.03, 0.15)), make_palette(rng))]


def shoe(rng: Generator) -> list[Piece]:
    """A shoe, boot or slipper, seen from the side or from the front: sole, toe, heel, an opening."""
    wide, tall = float(rng.uniform(0.13, 0.18)), float(rng.uniform(0.12, 0.5))
    sole = float(rng.uniform(0.03, 0.07))
    parts = [
        _primitive("ellipsoid", (0, sole + 0.1, -0.28), (wide, 0.16 + tall / 3, 0.2)),
        _primitive("ellipsoid", (0, sole + 0.07, 0.22), (1.1 * wide, 0.11, 0.28), 1),
        _primitive("ellipsoid", (0, sole + 0.08, -0.05), (wide, 0.15, 0.35)),
        _primitive("cylinder", (0, sole + 0.1 + tall / 2, -0.28), (0.85 * wide, 0.05 + tall / 2, 0.03)),
        _primitive("box", (0, sole / 2, -0.25), (wide, sole, 0.2), 2),
        _primitive("ellipsoid", (0, sole / 2, 0.15), (1.15 * wide, sole, 0.36), 2),
    ]
    opening = (0, sole + 0.25 + tall, -0.26), (0.65 * wide, 0.12 + tall / 2, 0.65 * wide)
    parts.append(_primitive("ellipsoid", *opening, hole=True))
    piece = _paint(rng, parts, 0.07, make_palette(rng))
    return [piece.moved(turn=rotation("y", float(rng.choice([np.pi / 2, -np.pi / 2, 0.6, -0.6]))))]


def vehicle(rng: Generator) -> list[Piece]:
    """A toy vehicle: a body, a cabin with windows, wheels; its front or its side faces the camera."""
    long, wide, tall = 1.0, float(rng.uniform(0.35, 0.5)), float(rng.uniform(0.15, 0.35))
    wheel, thick = float(rng.uniform(0.08, 0.15)), float(rng.uniform(0.05, 0.1))
    palette = make_palette(rng)
    body = rounded_box((long, tall, wide), float(rng.uniform(0.02, 0.1)))
    pieces = [Piece(body, _carton_print(rng, palette, (long, tall, wide))).moved((0, wheel + tall / 2, 0))]
    cabin = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.12, 0.3)), wide * float(rng.uniform(0.8, 1.0))
    place = float(rng.uniform(-0.5, 0.5)) * (long - cabin[0])
    windows = Image.new("RGB", (96, 64), palette.second)
    for column, row in list(BOX_CELLS.values())[:4]:
        for pane in range(2):
            corner = column * 32 + 3 + pane * 14, row * 32 + 6
            windows.paste((60, 75, 95), (*corner, corner[0] + 12, corner[1] + 16))
    shape = rounded_box(cabin, float(rng.uniform(0.02, 0.08)))
    pieces.append(Piece(shape, windows).moved((place, wheel + tall + cabin[1] / 2 - 0.01, 0)))
    if rng.random() < 0.3:  # a chimney or a light
        curve, _ = fillet([(0, 0), (0.05, 0), (0.06, 0.15), (0, 0.15)], 0.01)
        pieces.append(_plain(rng, revolve(curve, 20), palette).moved((-place, wheel + tall, 0)))
    tyre, _ = fillet([(0, -thick / 2), (wheel, -thick / 2), (wheel, thick / 2), (0, thick / 2)], 0.02)
    rubber = Image.new("RGB", (8, 32), (35, 35, 38))
    hub = palette.accent
    rubber.paste(hub, (0, 0, 8, 6))
    rubber.paste(hub, (0, 26, 8, 32))
    turned = revolve(tyre, 24).moved(turn=rotation("x", np.pi / 2))
    for x in (-0.32, 0.32):
        for z in (-1, 1):
            pieces.append(Piece(turned, rubber).moved((x * long, wheel, z * (wide / 2 - 0.2 * thick))))
    turn = rotation("y", float(rng.choice([0.0, np.pi / 2, -np.pi / 2, 0.5, np.pi])))
    return [piece.moved(turn=turn) for piece in pieces]


def furniture(rng: Generator) -> list[Piece]:
    """A table, stool or chair: a top on legs, sometimes with a back; or a shelf."""
    wide, deep, tall = (float(x) for x in rng.uniform([0.5, 0.45, 0.35], [1.2, 0.9, 1.0]))
    palette = make_palette(rng)
    top, leg = float(rng.uniform(0.05, 0.12)), float(rng.uniform(0.03, 0.06))
    if rng.random() < 0.3:
        boards = np.linspace(top / 2, tall, int(rng.integers(2, 5)))
        flat = rounded_box((wide, top, deep), 0.01)
        sides = rounded_box((top, tall + top / 2, deep), 0.01)
        pieces = [_plain(rng, flat, palette).moved((0, float(y), 0)) for y in boards]
        ends = _plain(rng, sides, palette)
        pieces += [ends.moved((s * wide / 2, tall / 2, 0)) for s in (-1, 1)]
        if rng.random() < 0.6:
            pieces.append(_plain(rng, rounded_box((wide, tall, 0.02), 0.005), palette).moved((0, tall / 2, -deep / 2)))
        return pieces
    pieces = [_plain(rng, rounded_box((wide, top, deep), float(rng.uniform(0.005, 0.05))), palette).moved((0, tall, 0))]
    support, _ = fillet([(0, 0), (leg * float(rng.uniform(0.5, 1)), 0), (leg, tall), (0, tall)], 0.005)
    post = _plain(rng, revolve(support, 16, section=float(rng.choice([2.0, 6.0]))), palette)
    for x in (-1, 1):
        for z in (-1, 1):
            pieces.append(post.moved((x * (wide / 2 - 1.5 * leg), 0, z * (deep / 2 - 1.5 * leg))))
    if rng.random() < 0.5:
        high = float(rng.uniform(0.3, 0.7))
        back = _plain(rng, rounded_box((wide, high, top), 0.02), palette)
        pieces.append(back.moved((0, tall + high / 2, -deep / 2 + top / 2)))
    return pieces


def stack(rng: Generator) -> list[Piece]:
    """Two to four objects of the other families on top of each other, each smaller than the one below."""
    makers = [can, carton, block, vase, cup]
    pieces: list[Piece] = []
    height, wide = 0.0, 1.0
    for _ in range(int(rng.integers(2, 5))):
        layer = _place(makers[int(rng.integers(len(makers)))](rng))
        squash = rng.uniform(0.35, 0.9)
        wide *= float(rng.uniform(0.6, 1.0))
        placed = [piece.moved((0, 0, 0), wide * np.array([1, squash, 1])) for piece in layer]
        pieces += [piece.moved((0, height, 0)) for piece in placed]
        height += 0.97 * max(float(piece.surface.vertices[:, 1].max()) for piece in placed)
    return pieces


def lamp(rng: Generator) -> list[Piece]:
    """A lamp, mushroom or parasol: a foot, a stem and a shade."""
    stem, shade, foot = float(rng.uniform(0.03, 0.08)), float(rng.uniform(0.25, 0.45)), float(rng.uniform(0.15, 0.3))
    low = float(rng.uniform(0.45, 0.7))
    corners = [(0, 0.0), (foot, 0), (foot, 0.04), (stem, 0.09), (stem, low), (0, low)]
    curve, _ = fillet(corners, 0.03)
    pieces = [_plain(rng, revolve(curve, 32), make_palette(rng))]
    crown = shade * float(rng.uniform(0.2, 0.9))
    slope = on_curve([(shade, low), ((shade + crown) * 0.52, (low + 1) / 2), (crown, 1)], 10)
    hood = [(0.0, low), (0.95 * shade, low - 0.05), *map(tuple, slope.tolist()), (0.0, 1.0)]
    pieces.append(_turn(rng, hood, (3, 11), 0.02, **_section(rng)))
    return pieces


def ring(rng: Generator) -> list[Piece]:
    """A ring, wreath, tyre or bracelet, standing or lying."""
    thick = float(rng.uniform(0.1, 0.28))
    angle = np.linspace(-np.pi, np.pi, 49)
    path = np.stack([np.sin(angle) * 0.5, np.cos(angle) * 0.5 * float(rng.uniform(0.7, 1.2)), 0 * angle], axis=1)
    surface = tube(path, thick, (0, 0, 1), 24, float(rng.uniform(0.7, 1.8)))
    texture = _around(rng, make_palette(rng), (0.3, 0.7), 2.0, labelled=False)
    tilt = float(rng.choice([0.0, np.pi / 2, 1.1, 0.4], p=[0.4, 0.25, 0.2, 0.15]))
    return [Piece(surface, texture).moved(turn=rotation("x", tilt))]


def basket(rng: Generator) -> list[Piece]:
    """A pail, basket or bag with a bow-shaped handle above it."""
    r, height = float(rng.uniform(0.3, 0.45)), float(rng.uniform(0.4, 0.75))
    foot, wall = r * float(rng.uniform(0.6, 1.0)), 0.03
    corners = [(0.0, 0.0), (foot, 0), (r, height), (r - wall, height), (foot - wall, 0.06), (0.0, 0.06)]
    shape = _section(rng)
    pieces = [_turn(rng, corners, (1, 2), 0.02, **shape)]
    arc = np.linspace(0, np.pi, 24)
    rise = float(rng.uniform(0.3, 0.6))
    path = np.stack([(r - wall / 2) * np.cos(arc), 0.93 * height + rise * np.sin(arc), 0 * arc], axis=1)
    handle = tube(path, float(rng.uniform(0.02, 0.045)), (0, 0, 1), flat=float(rng.uniform(1, 2)))
    turn = rotation("y", float(rng.choice([0.0, np.pi / 2]))) if "depth" not in shape else None
    pieces.append(_plain(rng, handle, make_palette(rng)).moved(turn=turn))
    return pieces


def kettle(rng: Generator) -> list[Piece]:
    """A teapot, watering can or kettle: a round body, a lid with a knob, a spout and a handle."""
    r, height = float(rng.uniform(0.28, 0.42)), float(rng.uniform(0.4, 0.7))
    side = on_curve([(0.75 * r, 0), (r, 0.4 * height), (0.55 * r, height)], 14)
    lid = [(0.2 * r, height + 0.08), (0.08 * r, height + 0.1), (0.14 * r, height + 0.16), (0.0, height + 0.18)]
    pieces = [_turn(rng, [(0.0, 0.0), *map(tuple, side.tolist()), *lid], (2, 10), 0.02)]
    texture = _trim(rng, pieces[0])
    spout = on_curve([(0.8 * r, 0.3 * height), (1.25 * r, 0.5 * height), (1.6 * r, 0.95 * height)], 14)
    widths = np.linspace(0.1, 0.045, 14)
    widths[-1] = 0.0
    spout[-1] = spout[-2] * 0.9 + spout[-1] * 0.1
    pieces.append(Piece(tube(np.pad(spout, ((0, 0), (0, 1))), widths, (0, 0, 1)), texture))
    arc = np.linspace(np.pi / 2, 3 * np.pi / 2, 16)
    reach = float(rng.uniform(0.2, 0.35))
    bow = np.stack([-0.85 * r + reach * np.cos(arc), height * (0.5 + 0.33 * np.sin(arc)), 0 * arc], axis=1)
    pieces.append(Piece(tube(bow, float(rng.uniform(0.03, 0.05)), (0, 0, 1)), texture))
    turn = rotation("y", float(rng.choice([0.0, np.pi, 0.5, -0.5, np.pi - 0.5])))
    return [piece.moved(turn=turn) for piece in pieces]


KINDS: dict[str, tuple[Callable[[Generator], list[Piece]], float]] = {
    "can": (can, 8),
    "bottle": (bottle, 10),
    "vase": (vase, 8),
    "cup": (cup, 9),
    "carton": (carton, 12),
    "block": (block, 6),
    "figure": (figure, 14),
    "blob": (blob, 9),
    "shoe": (shoe, 6),
    "vehicle": (vehicle, 8),
    "furniture": (furniture, 6),
    "stack": (stack, 6),
    "lamp": (lamp, 4),
    "ring": (ring, 3),
    "basket": (basket, 5),
    "kettle": (kettle, 5),
}
"""Name -> the family's function and its share of the objects."""
