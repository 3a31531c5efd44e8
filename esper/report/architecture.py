"""Draw the architecture: the host's blocks from input to output, and the modules that grew at them."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.report.run_record import RunRecord
from esper.tracking.history import GrownModule

__all__ = ["Block", "Drawing", "Shape", "blocks", "draw", "tail"]

_TRUNK_X, _BLOCK_WIDTH, _BLOCK_HEIGHT = 92, 152, 40
_BRANCH_X, _BRANCH_WIDTH, _LINE_HEIGHT = 206, 178, 18
_GAP = 26
_MAX_NAME, _MAX_MODULE = 21, 24  # characters in a box
_COPY = "copy"  # blueprint of blocks that stand in the chain, not beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of the host, and the modules that grew `beside` and `after` it; None where there is no site."""

    name: str
    shape: str
    beside: list[GrownModule] | None
    after: list[GrownModule] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape; `kind` is box (x, y, width, height, lines of text), path (d), seed (x, y) or sum (x, y)."""

    kind: str
    style: str = ""
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    lines: tuple[str, ...] = ()
    d: str = ""


@dataclass(kw_only=True)
class Drawing:
    """Shapes on a canvas of width 400."""

    shapes: list[Shape] = field(default_factory=list)
    height: float = 0


def blocks(record: RunRecord) -> list[Block]:
    """The blocks with sites, in forward order, taken from the first health signals."""
    consultations = record.of_kind("signals")
    signals = consultations[0]["signals"] if consultations else []
    shapes = {signal["site"]: "×".join(map(str, signal["out_shape"])) for signal in signals}
    grown: dict[str, list[GrownModule]] = {site: [] for site in shapes}
    for module in record.history.modules:
        grown.setdefault(module.site, []).append(module)
    names = dict.fromkeys(site.rpartition(":")[0] for site in grown)
    return [
        Block(
            name=name,
            shape=shapes.get(f"{name}:after") or shapes.get(f"{name}:beside") or "",
            beside=grown.get(f"{name}:beside"),
            after=grown.get(f"{name}:after"),
        )
        for name in names
    ]


def tail(name: str, length: int) -> str:
    """The end of a name that is too long: names of blocks and sites differ there."""
    return name if len(name) <= length else f"…{name[1 - length :].lstrip('.')}"


def draw(host: list[Block], *, grown: bool) -> Drawing:
    """Draw the host with dormant seeds, or with the modules that grew (`grown`); both drawings have the same height."""
    drawing = Drawing()
    trunk = len(drawing.shapes)
    _end(drawing, "input")
    for block in host:
        _block(drawing, block, grown=grown)
    drawing.height += _GAP
    _end(drawing, "output")
    path = f"M{_TRUNK_X} 20V{drawing.height - 20}"
    drawing.shapes.insert(trunk, Shape(kind="path", style="trunk", d=path))
    return drawing


def _end(drawing: Drawing, text: str) -> None:
    x = _TRUNK_X - _BLOCK_WIDTH / 2
    drawing.shapes.append(
        Shape(kind="box", style="end", x=x, y=drawing.height + 2, width=_BLOCK_WIDTH, height=26, lines=(text,))
    )
    drawing.height += 30


def _block(drawing: Drawing, block: Block, *, grown: bool) -> None:
    beside, after = block.beside or [], block.after or []
    top = drawing.height + _GAP
    height = max(_BLOCK_HEIGHT, _branch_height(beside))
    y = top + (height - _BLOCK_HEIGHT) / 2
    name = tail(block.name, _MAX_NAME)
    lines = (name, block.shape) if block.shape else (name,)
    x = _TRUNK_X - _BLOCK_WIDTH / 2
    bottom = top + height
    if block.beside is not None:
        if grown and beside:
            _branch(drawing, beside, fork=top - 10, join=bottom + 12, middle=top + height / 2)
        else:
            _seed(drawing, y + _BLOCK_HEIGHT / 2)
    drawing.shapes.append(
        Shape(kind="box", style="host", x=x, y=y, width=_BLOCK_WIDTH, height=_BLOCK_HEIGHT, lines=lines)
    )
    drawing.height = bottom + (12 if beside else 0)
    if block.after is None:
        return
    if not after:
        drawing.height += 16
        _seed(drawing, drawing.height)
        return
    start = drawing.height + 14
    end = start + _branch_height(after) + 12
    if grown and all(module.blueprint_id == _COPY for module in after):
        _modules(drawing, after, x=_TRUNK_X - _BRANCH_WIDTH / 2, middle=(start + end) / 2)
    elif grown:
        _branch(drawing, after, fork=start, join=end, middle=(start + end) / 2)
    else:
        _seed(drawing, (start + end) / 2)
    drawing.height = end


def _seed(drawing: Drawing, y: float) -> None:
    x = _BRANCH_X - 14
    drawing.shapes.append(Shape(kind="path", style="dormant", d=f"M{_TRUNK_X} {y}H{x - 5}"))
    drawing.shapes.append(Shape(kind="seed", x=x, y=y))


def _branch_height(modules: list[GrownModule]) -> float:
    return _LINE_HEIGHT * (len(modules) + 1) if modules else 0


def _branch(drawing: Drawing, modules: list[GrownModule], *, fork: float, join: float, middle: float) -> None:
    """A branch around the trunk, with the modules of one site."""
    x = _BRANCH_X + _BRANCH_WIDTH / 2
    d = f"M{_TRUNK_X} {fork}H{x}V{join}H{_TRUNK_X + 8}"
    drawing.shapes.append(Shape(kind="path", style=_style(modules), d=d))
    _modules(drawing, modules, x=_BRANCH_X, middle=middle)
    if _style(modules) != "culled":
        drawing.shapes.append(Shape(kind="sum", style=_style(modules), x=_TRUNK_X, y=join))


def _modules(drawing: Drawing, modules: list[GrownModule], *, x: float, middle: float) -> None:
    """A box with the modules of one site."""
    marks = {"kept": "✓", "culled": "✗"}
    names = [_head(f"{module.graft_id}  {module.blueprint_id}", _MAX_MODULE) for module in modules]
    lines = tuple(f"{name}  {marks.get(module.verdict, '…')}" for name, module in zip(names, modules, strict=True))
    height = _branch_height(modules)
    y = middle - height / 2 + 3
    drawing.shapes.append(
        Shape(kind="box", style=_style(modules), x=x, y=y, width=_BRANCH_WIDTH, height=height - 6, lines=lines)
    )


def _head(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _style(modules: list[GrownModule]) -> str:
    if any(module.is_kept for module in modules):
        return "kept"
    return "live" if any(module.is_live for module in modules) else "culled"
