"""Run in the shipped environment: import and use all that the three packages reach of libraries.

Prints one JSON object: `failures`, a line for each import that failed, and `files`, the sources of
every library's module that was loaded by then.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("server", "pipelines", "models")


def sources(root: Path) -> Iterator[Path]:
    """Every Python file of the three packages."""
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every absolute import of a file, at any depth; name None imports it whole.

    What only type checkers read is left out.
    """
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8", errors="replace"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_one(module: str, name: str | None) -> None:
    """As the import statement does it."""
    imported = importlib.import_module(module)
    if name is not None and name != "*" and not hasattr(imported, name):
        importlib.import_module(f"{module}.{name}")


def use_schedulers() -> None:
    from pipelines.request import Sampler
    from pipelines.samplers.programs import make_program

    for sampler in Sampler:
        make_program(sampler, 10, 0.0)


def use_models() -> None:
    from models.auxiliary.choose import choose_clip
    from models.loading.loader import load_model
    from models.spec import ModelSpec

    bundle = load_model(ModelSpec("embedded"), device="cpu", dtype="float32")
    assert choose_clip(bundle) is not None


def use_databases() -> None:
    from server.accounts.api_keys import KeyStore
    from server.accounts.db import Database

    async def list_keys(folder: str) -> None:
        database = Database(f"sqlite:///{folder}/accounts.db")
        await database.migrate()
        assert await KeyStore(database).list() == []
        await database.close()
        await Database("postgresql://user@127.0.0.1:9/name").close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(list_keys(folder))


def use_limits() -> None:
    from server.accounts.rate_limits import Rates

    Rates("redis://127.0.0.1:9")


def use_uvicorn() -> None:
    import uvicorn

    for loop in ("uvloop", "auto"):
        config = uvicorn.Config(
            "server.app:create_app", loop=loop, http="httptools", log_config=None
        )
        config.load()
        config.get_loop_factory()


def use_pictures() -> None:
    import pillow_heif

    from server.images.decode import FORMATS

    assert pillow_heif.libheif_version()
    assert "HEIF" in FORMATS


USES: tuple[Callable[[], None], ...] = (
    use_schedulers, use_models, use_databases, use_limits, use_uvicorn, use_pictures
)  # fmt: skip


def main(root: Path, left_out: set[str]) -> dict[str, list[str]]:
    """`left_out`: the top-level modules that only extras, or some builds of torch, bring."""
    failures = []
    for file in sources(root):
        name = module_name(file, root)
        if name == "server.accounts.migrations.env":  # runs a migration when it is imported
            continue
        wanted = [(name, None), *imports(file)]
        for module, part in wanted:
            if module.partition(".")[0] in left_out:
                continue
            try:
                import_one(module, part)
            except ImportError as error:
                if (error.name or "").partition(".")[0] in left_out:
                    continue  # a module of ours that is for those who have it
                failures.append(f"{file.relative_to(root)}: {module} {part or ''}: {error}")
    for use in USES:
        try:
            use()
        except Exception as error:
            failures.append(f"{use.__name__}: {type(error).__name__}: {error}")
    libraries = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    files = sorted(f for f in loaded if f.endswith(".py") and f.startswith(libraries))
    return {"failures": failures, "files": files}


if __name__ == "__main__":
    print(json.dumps(main(Path.cwd(), set(sys.argv[1:]))))
