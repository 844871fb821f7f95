"""`pytorch2onnx.py CONFIG --check`: a table of the exports of a config, and of those that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import Mm2OnnxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.contract.option import Options
    from mmdeploy_ext.families.base import Family

DYNAMIC = {False: 'fixed', True: 'dynamic'}


def print_exports(cfg: Any, family: Family, options: Options) -> int:
    """Print a table of the exports of a config, form by form; needs no weights.

    Returns:
        0: the requested export can be made; if not, the error of the export is raised.
    """
    from rich.console import Console
    from rich.table import Table

    from mmdeploy_ext.exporting import deployment as deploy

    model = family.build(cfg)
    options = deploy.check_options(options, cfg, family, model)
    console = Console(width=150)
    console.print(f'{cfg.filename}: family {family.name}', highlight=False)
    rule = ', '.join(f'{key} {value}' for key, value in family.preprocess_rule(cfg).to_json().items())
    for title, value in {**_part_types(cfg), 'preprocessing': rule}.items():
        console.print(f'  {title:14} {value}', highlight=False)
    table = Table(title='exports')
    for title in ('form', 'size', 'opset', 'inputs', 'outputs, or why it is refused'):
        table.add_column(title)
    for variant in _variants(options):
        table.add_row(*_row(cfg, family, model, variant))
    console.print(table)
    return 0


def _part_types(cfg: Any) -> dict[str, str]:
    """Return the type names of a detector's parts by their keys."""
    types = dict(detector=str(cfg.model.type))
    for key, value in cfg.model.items():
        parts = value if isinstance(value, list | tuple) else [value]
        names = [str(part['type']) for part in parts if isinstance(part, dict) and 'type' in part]
        if names:
            types[key] = ' + '.join(names)
    return types


def _variants(options: Options) -> Iterator[Options]:
    """Yield the options in every form, fixed and dynamic, as far as the family has them."""
    forms = next((option.choices for option in options.declared if option.name == 'form'), ())
    for form in forms or (None,):
        for dynamic in DYNAMIC if 'dynamic' in options else (None,):
            changes = dict(form=form, dynamic=dynamic)
            yield options.replace(**{key: value for key, value in changes.items() if value is not None})


def _row(cfg: Any, family: Family, model: Any, options: Options) -> tuple[str, ...]:
    """Return a row of the table."""
    from mmdeploy_ext.exporting import deployment as deploy

    size = f'{options.get("height")} x {options.get("width")}' if 'height' in options else ''
    title = options.get('form', ''), f'{DYNAMIC.get(options.get("dynamic"), "")} {size}'.strip()
    try:
        options.check()
        options = deploy.check_options(options, cfg, family, model)
        graphs = family.graphs(model, options)
    except Mm2OnnxError as error:
        return *title, '', '', str(error)
    texts = [
        '\n'.join(
            f'{tensor.name} {"x".join(map(str, tensor.axes))}'
            for graph in graphs
            for tensor in getattr(graph.spec, side)
        )
        for side in ('inputs', 'outputs')
    ]
    return *title, str(options.get('opset', '')), *texts
