"""Write docs/rooms.svg: the packages and modules below anypo, and what they import, read off the import graph.

`python docs/rooms.py` writes the picture. An arrow is an import; one that other arrows imply is left out.
"""

from __future__ import annotations

from collections import defaultdict
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import mean

import grimp

PICTURE = Path(__file__).with_name("rooms.svg")
CONTENT = {
    "api": "train, load, resume, compare",
    "cli": "commands",
    "config": "YAML file and flags",
    "errors": "UsageError, RunError",
    "estimators": "measures of data and policies",
    "evidence": "properties, claims, ledger",
    "flags": "the command line's flags",
    "kernels": "fast twins of plain code",
    "loops": "collect, update, evaluate",
    "method": "a filling of the stages",
    "methods": "one file per method",
    "networks": "beside the policy's own",
    "numbers": "floats that may move",
    "parts": "one package per stage",
    "plain_yaml": "YAML read as it looks",
    "plugins": "files and entry points of users",
    "policies": "language, control, generative",
    "protocols": "policy, task, capabilities",
    "rng": "random numbers of rollouts",
    "ranges": "what a setting takes",
    "report": "console, trackers, curves",
    "runs": "state, folder, checkpoints",
    "stages": "the nine stages",
    "tasks": "text, control, toys",
    "types": "batches of tensors",
    "comparisons": "preference data",
    "views": "forward passes a part asks for",
}
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 190, 46, 26, 44, 16
Edges = dict[str, set[str]]


def room_imports() -> Edges:
    """Return the imports between rooms; a room is a package or module right below anypo."""
    graph = grimp.build_graph("anypo", cache_dir=None)
    edges: Edges = {module.split(".")[1]: set() for module in graph.modules if "." in module}
    del edges["__main__"]
    for module in graph.modules:
        importer = module.split(".")[1] if "." in module else ""
        if importer in edges:
            edges[importer] |= {m.split(".")[1] for m in graph.find_modules_directly_imported_by(module) if "." in m}
    return {room: targets - {room} for room, targets in edges.items()}


def reachable(edges: Edges, start: str) -> set[str]:
    """Return all that `start` imports, directly or not."""
    seen: set[str] = set()
    queue = [start]
    while queue:
        new = edges[queue.pop()] - seen
        seen |= new
        queue.extend(new)
    return seen


def reduce_edges(edges: Edges) -> Edges:
    """Leave out imports that a chain of other imports implies."""
    return {a: {b for b in bs if not any(b in reachable(edges, c) for c in bs - {b})} for a, bs in edges.items()}


def level(edges: Edges, room: str) -> int:
    """Return the length of the longest chain of imports below a room."""
    return max((level(edges, target) + 1 for target in edges[room]), default=0)


def layered(edges: Edges) -> tuple[list[list[str]], list[list[str]]]:
    """Return (levels from the top, paths): every edge is a path through all levels between its ends, by way of `a>b` places."""
    depth = {room: level(edges, room) for room in edges}
    levels: dict[int, list[str]] = defaultdict(list)
    for room in sorted(edges):
        levels[depth[room]].append(room)
    paths = []
    for a in sorted(edges):
        for b in sorted(edges[a]):
            between = range(depth[a] - 1, depth[b], -1)
            for k in between:
                levels[k].append(f"{a}>{b}>{k}")
            paths.append([a, *(f"{a}>{b}>{k}" for k in between), b])
    return [levels[k] for k in sorted(levels, reverse=True)], paths


def place(levels: list[list[str]], paths: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Return the centre of every place: levels are ordered by the mean position of their neighbours, in a few sweeps."""
    neighbours: Edges = defaultdict(set)
    for path in paths:
        for a, b in pairwise(path):
            neighbours[a].add(b)
            neighbours[b].add(a)
    x: dict[str, float] = {}
    for sweep in range(12):
        for row in levels if sweep % 2 == 0 else levels[::-1]:
            near = {name: [x[n] for n in neighbours[name] if n in x and n not in row] for name in row}
            row.sort(key=lambda name: (mean(near[name]) if near[name] else x.get(name, 0.0), name))
            widths = [20 if ">" in name else WIDTH for name in row]
            left = -(sum(widths) + ACROSS * (len(row) - 1)) / 2
            for name, width in zip(row, widths, strict=True):
                x[name] = left + width / 2
                left += width + ACROSS
    return {name: (x[name], k * (HEIGHT + DOWN)) for k, row in enumerate(levels) for name in row}


def draw(edges: Edges) -> str:
    """Return the picture as SVG."""
    levels, paths = layered(reduce_edges(edges))
    centre = place(levels, paths)
    low = min(x for x, _ in centre.values()) - WIDTH / 2 - MARGIN
    wide = max(x for x, _ in centre.values()) + WIDTH / 2 + MARGIN - low
    high = len(levels) * (HEIGHT + DOWN) - DOWN + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{low:g} {-HEIGHT / 2 - MARGIN:g} {wide:g} {high:g}"'
        ' font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>',
        f'<rect x="{low:g}" y="{-HEIGHT / 2 - MARGIN:g}" width="{wide:g}" height="{high:g}" fill="white"/>',
    ]
    for path in paths:
        corners = [(centre[path[0]][0], centre[path[0]][1] + HEIGHT / 2)]
        for name in path[1:-1]:
            x, y = centre[name]
            corners += [(x, y - HEIGHT / 2), (x, y + HEIGHT / 2)]
        corners.append((centre[path[-1]][0], centre[path[-1]][1] - HEIGHT / 2))
        points = " ".join(f"{x:g},{y:g}" for x, y in corners)
        lines.append(f'<polyline points="{points}" fill="none" stroke="#667" marker-end="url(#head)"/>')
    for room in sorted(edges):
        x, y = centre[room]
        box = f'x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
        lines.append(f'<rect {box} fill="#eef3fb" stroke="#446"/>')
        lines.append(f'<text x="{x:g}" y="{y - 3:g}" font-size="14" font-weight="bold">{escape(room)}</text>')
        lines.append(f'<text x="{x:g}" y="{y + 14:g}" font-size="11">{escape(CONTENT[room])}</text>')
    return "\n".join((*lines, "</svg>", ""))


if __name__ == "__main__":
    PICTURE.write_text(draw(room_imports()))
