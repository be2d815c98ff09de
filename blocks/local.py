"""Save the local set of blocks: a repository in a folder, stages as plain processes, model servers on this machine.

python blocks/local.py [FOLDER] [--remote URL] [--name NAME]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dvkf_prefect import DvcRemote, DvcRepository, KubeflowPipelines, ModelServer


def save(folder: Path, *, remote: str | None = None, name: str = "local") -> list[str]:
    """Save the blocks, overwriting those of the same names.

    Args:
        folder: The DVC repository.
        remote: Url of the remote to use instead of the repository's own default.
        name: Name of each block.

    Returns:
        The saved blocks, as ``type/name``.

    Raises:
        NotARepositoryError: The folder is not in a DVC repository.
        ConfigError: The remote's url or options are wrong.

    Example:
        ``save(Path("."))``
    """
    saved = []
    store = None
    if remote is not None:
        # A relative folder is below the current folder, not below the repository's `.dvc`.
        store = DvcRemote(url=remote if "://" in remote else str(Path(remote).absolute()))
    repository = DvcRepository(path=str(folder.absolute()), remote=store)
    root = repository.open().root
    repository.path = str(root)
    blocks = (repository, KubeflowPipelines(), ModelServer())
    # The repository refers to its remote, so that is saved first.
    for block in (store, *blocks) if store else blocks:
        block.save(name, overwrite=True)
        saved.append(f"{block.get_block_type_slug()}/{name}")
    return saved


def main() -> None:
    """Read the command line, save the blocks and print their names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        help="folder of the DVC repository (default: the working directory)",
    )
    parser.add_argument("--remote", metavar="URL", help="remote to use instead of the repository's default")
    parser.add_argument("--name", default="local", help="name of each block (default: local)")
    options = parser.parse_args()
    saved = save(options.folder, remote=options.remote, name=options.name)
    print(f"Saved {len(saved)} blocks for {options.folder.absolute()}:")
    for block in saved:
        print(f"  {block}")
    print("Deploy the flows that use them with `prefect deploy --all`.")


if __name__ == "__main__":
    main()
