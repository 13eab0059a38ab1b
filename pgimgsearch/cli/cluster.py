"""``cluster``: groups of like images."""

from typing import Annotated

import typer
from psycopg.rows import dict_row

from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import CollectionOption, ModelOption, terminal_of
from pgimgsearch.database.connection import connect
from pgimgsearch.database.url import database_url


def cluster(
    context: typer.Context,
    model: ModelOption = "default",
    collection: CollectionOption = None,
    least: Annotated[int, typer.Option(min=2, help="The smallest cluster.")] = 5,
    neighbours: Annotated[int, typer.Option(min=2, max=200, help="Nearest neighbours per image.")] = 15,
) -> None:
    """Cluster similar images, and store the clusters for imgsearch.clusters()."""
    from pgimgsearch.duplicates import cluster as clustering

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model)
        with terminal.report("neighbours", None) as reporter:
            found = clustering.cluster(connection, stored, neighbours, least, collection, reporter)
        clustering.save(connection, stored, found)
        rows = (
            connection.cursor(row_factory=dict_row)
            .execute(
                "select distinct on (size, cluster) cluster, size as images, image_id, path as typical "
                "from imgsearch.clusters(%s) where cluster is not null order by size desc, cluster, probability desc",
                [stored.name],
            )
            .fetchall()
        )
    terminal.show(rows, ["cluster", "images", "image_id", "typical"])
    alone = int((found.labels == -1).sum())
    terminal.notify(f"{stored.name}: {len(found.labels)} images in {len(rows)} groups, {alone} like no others")
