"""Self-contained HTML pages from Jinja templates that lie beside the code."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import jinja2
    from markupsafe import Markup


@functools.cache  # a template is compiled when it is read
def template(file: str, name: str, **options: Any) -> jinja2.Template:
    """Return a template; filling it in is an error if a value that it names is missing.

    Args:
        file: `__file__` of the module that the template lies beside.
        name: file name of the template.
        options: options of the `jinja2.Environment`, such as `autoescape`.

    Raises:
        jinja2.TemplateNotFound: there is no such file.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(file).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    return environment.get_template(name)


def embedded_json(content: Mapping[str, Any]) -> Markup:
    """Return JSON that may stand inside a `<script>` element: no character that HTML reads.

    `content` has plain JSON types. ValueError: a number is NaN or infinite.
    """
    from markupsafe import Markup

    text = json.dumps(content, allow_nan=False)
    for character in '<>&':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return Markup(text)
