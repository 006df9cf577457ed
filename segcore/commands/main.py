"""`segcore`: one command line for a person's own data. Every command imports late what takes long."""

import typer

from segcore.commands import compare, export, export_model, import_, new, next, pack, predict, serve, stage

app = typer.Typer(
    name="segcore",
    help="Semantic segmentation from many image tags and a few masks. Every command shows an example in its --help.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(new.new)
app.command()(new.upgrade)
app.command(name="import")(import_.import_)
app.command()(pack.pack)
app.command()(pack.index)
app.command()(predict.predict)
app.command()(serve.serve)
app.command()(export.export)
app.command(name="export-model")(export_model.export_model)
app.command()(compare.compare)
app.command(name="next")(next.next_)
app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(stage.stage)


def main() -> None:
    """The entry of the package's script."""
    app()
