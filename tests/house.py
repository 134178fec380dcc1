"""The house rules, read off syntax trees: sizes, words, names, docstrings, and what may be used where.

`python tests/house.py [PATH...]` prints what breaks a rule of single files below PATH (default: src/anypo and the pages).
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "anypo"
SIZES = {"module": 400, "class": 250, "function": 60}
NO_LOCAL = frozenset({"found", "told", "made", "some", "every", "own", "given"})
BANNED = tuple(
    (re.compile(pattern), instead)
    for line in (ROOT / "tests" / "banned_words.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for pattern, instead in [line.split(" -> ", 1)]
)
EQUATION = re.compile(r"=|->|\bArgs:")
CITED = re.compile(r"=|->|Source:|arXiv|\beq\.|\d{4}\.\d{5}|\b(19|20)\d\d\b")
CODE = re.compile(r"`[^`]*`")
FENCED = re.compile(r"^(torch\._inductor|torch\.ops\.mkldnn|ctypes)\b|\bautograd\.Function$")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Violation:
    """One place where a rule does not hold; `subject` is what an exception names."""

    rule: str
    path: str
    line: int
    subject: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.sentence}"


@dataclass(frozen=True)
class Source:
    """A Python file of the library, or a Markdown page."""

    file: Path

    @cached_property
    def text(self) -> str:
        return self.file.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def path(self) -> str:
        return str(self.file.relative_to(ROOT)) if self.file.is_relative_to(ROOT) else str(self.file)

    @property
    def room(self) -> str:
        """First name below anypo: the package or the module; `pages` for Markdown."""
        return "pages" if self.file.suffix == ".md" else self.file.relative_to(SOURCE).parts[0].removesuffix(".py")

    def violation(self, rule: str, node: ast.AST | int, subject: str, sentence: str) -> Violation:
        return Violation(
            rule, self.path, node if isinstance(node, int) else getattr(node, "lineno", 1), subject, sentence
        )


def sizes(source: Source) -> Iterator[Violation]:
    """No module, class or function longer than SIZES."""
    entries = [("module", source.file.stem, 1, source.text.count("\n"))]
    for node in ast.walk(source.tree):
        if isinstance(node, (Function, ast.ClassDef)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            entries.append((kind, node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1))
    for kind, name, line, size in entries:
        if size > SIZES[kind]:
            yield source.violation(
                "sizes", line, name, f"the {kind} {name} has {size} lines, {SIZES[kind]} are allowed"
            )


def words(source: Source) -> Iterator[Violation]:
    """No banned word in docstrings, comments and pages."""
    for line, text in prose(source):
        for pattern, instead in BANNED:
            if match := pattern.search(text):
                yield source.violation("words", line, match[0], f"{match[0]!r} (write {instead}): {text.strip()[:90]}")


def prose(source: Source) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line of docstrings and comments, or of a page outside code blocks; `code` in a line is left out."""
    if source.file.suffix == ".md":
        code = False
        for number, line in enumerate(source.text.splitlines(), 1):
            code ^= line.startswith("```")
            if not code:
                yield number, CODE.sub("", line)
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from enumerate((CODE.sub("", line) for line in node.value.value.splitlines()), node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def local_names(source: Source) -> Iterator[Violation]:
    """No local variable named after its being found, made or given."""
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            parameters = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
            for name in ast.walk(node):
                stored = isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
                if stored and name.id in NO_LOCAL - parameters:
                    yield source.violation("local_names", name, name.id, f"{node.name} has a local named {name.id!r}")


def docstrings(source: Source) -> Iterator[Violation]:
    """Public functions and classes have docstrings; from three parameters on with `Args:` or an equation; parts with an equation
    or a source. The parameters of a command of the command line carry their own help."""
    for node in source.tree.body:
        if not isinstance(node, (Function, ast.ClassDef)) or node.name.startswith("_"):
            continue
        text, decorators = ast.get_docstring(node), [ast.unparse(d) for d in node.decorator_list]
        if not text:
            yield source.violation("docstrings", node, node.name, f"{node.name} has no docstring")
        elif isinstance(node, ast.ClassDef):
            if any(d.startswith("register_part(") for d in decorators) and not CITED.search(text):
                yield source.violation(
                    "docstrings", node, node.name, f"the part {node.name} cites neither equation nor source"
                )
        elif not any(d.startswith("app.command(") for d in decorators):
            count = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
            if count >= 3 and not EQUATION.search(text):
                sentence = f"{node.name} has {count} parameters; its docstring has neither `Args:` nor an equation"
                yield source.violation("docstrings", node, node.name, sentence)


def kernels_only(source: Source) -> Iterator[Violation]:
    """Outside kernels nothing uses autograd.Function, torch._inductor, torch.ops.mkldnn or ctypes."""
    if source.room == "kernels":
        return
    for node in ast.walk(source.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            if FENCED.search(name):
                yield source.violation("kernels_only", node, name, f"{name} belongs to anypo.kernels")


RULES: dict[str, Callable[[Source], Iterator[Violation]]] = {
    rule.__name__: rule for rule in (sizes, words, local_names, docstrings, kernels_only)
}
"""Rules of single files."""


def method_ids(source: Source, ids: Iterable[str]) -> Iterator[Violation]:
    """No string outside docstrings equals a method's id: what a method needs is declared by its parts."""
    known = set(ids)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and node.value in known:
            yield source.violation("method_ids", node, str(node.value), f"the method id {node.value!r} is named")


def repeated_names(sources: Iterable[Source]) -> Iterator[Violation]:
    """A public module-level name is defined in one module only."""
    places: dict[str, list[tuple[Source, int]]] = defaultdict(list)
    for source in sources:
        for name, line in defined_names(source.tree):
            if not name.startswith("_"):
                places[name].append((source, line))
    for name, definitions in places.items():
        for source, line in definitions if len(definitions) > 1 else ():
            others = ", ".join(other.path for other, _ in definitions if other is not source)
            yield source.violation("repeated_names", line, name, f"{name} is defined in {others} too")


def defined_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, line) of the functions, classes and constants a module defines, each once; type variables apart."""
    lines: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, (Function, ast.ClassDef)):
            lines.setdefault(node.name, node.lineno)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and not ast.unparse(node.value or node).startswith(
            "TypeVar("
        ):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        lines.setdefault(name.id, node.lineno)
    yield from lines.items()


def library() -> list[Source]:
    """Every Python file of the library."""
    return [Source(file) for file in sorted(SOURCE.rglob("*.py"))]


def pages() -> list[Source]:
    """README, CONTRIBUTING and the pages of docs."""
    return [Source(ROOT / "README.md"), Source(ROOT / "CONTRIBUTING.md"), *map(Source, sorted(ROOT.glob("docs/*.md")))]


def main(paths: list[str]) -> int:
    """Print the violations of single files below `paths`; returns 1 if there are any."""
    below = [Path(path).resolve() for path in paths]
    chosen = [s for s in (*library(), *pages()) if not below or any(s.file.is_relative_to(path) for path in below)]
    violations = [
        v for s in chosen for name, rule in RULES.items() if s.room != "pages" or name == "words" for v in rule(s)
    ]
    sys.stdout.write("".join(f"{violation}\n" for violation in violations))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
