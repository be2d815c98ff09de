"""Tasks that show a repository: its overview and its plots."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import overview_card, plain, plots_card
from dvkf_prefect.overview import Overview, read_overview
from dvkf_prefect.pipeline.report.plot_files import draw_images
from dvkf_prefect.pipeline.report.plots import WORKSPACE, changed_versions, read_plots
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import listed, run_name


@task(task_run_name=run_name("overview of {repository.name}"), cache_policy=NO_CACHE)
def show_overview(repository: DvcRepository | str, *, remote: bool = False) -> Overview:
    """Show the data, stages, models, services and health of a repository on one card.

    Args:
        repository: The repository.
        remote: Also check the remote, which asks its server.

    Returns:
        The overview. A part that cannot be read is among its faults.

    Example:
        ``show_overview(DvcRepository.load("local")).stale``
    """
    repository = find_block(DvcRepository, repository, "repository")
    overview = read_overview(repository.open(), remote=remote)
    card = overview_card(overview, repository.name, limit=DvkfSettings().card_rows)
    publish(card)
    run_logger().info("%s", plain(card.description))
    return overview


@task(task_run_name=run_name("plots of {repository.name}"), cache_policy=NO_CACHE)
def show_plots(
    repository: DvcRepository | str, targets: str | Sequence[str] = (), *, revs: Sequence[str] = ()
) -> tuple[str, ...]:
    """Show the plots of dvc.yaml as pictures on one card. A repository without plots gets none.

    Plots of points need the extra ``plots``; without it, the card names them. Plots that stages write as images need
    nothing.

    Args:
        repository: The repository.
        targets: Files or names of plots; all if empty.
        revs: Versions to draw together: git revisions, and ``workspace``. By default the last commit and the
            workspace.

    Returns:
        Names of the drawn plots.

    Raises:
        GitError: There is no such revision.

    Example:
        ``show_plots(DvcRepository.load("local"), ["predictions.csv"])``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open()
    wanted = list(revs) or changed_versions(repo) or [WORKSPACE]
    images = draw_images(read_plots(repo, listed(targets), revs=wanted))
    if images:
        card = plots_card(images, repository.name, revs=wanted, limit=DvkfSettings().card_rows)
        publish(card)
        run_logger().info("%s", plain(card.description))
    else:
        run_logger().info("no plots in %s", repository.name)
    return tuple(image.name for image in images if not image.error)
