"""Self-contained HTML pages from Jinja templates beside the code."""

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
    """Template `name` beside the module `file`; missing values are errors."""
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
    """JSON that is safe inside a `<script>` element."""
    from markupsafe import Markup

    text = json.dumps(content, allow_nan=False)
    for character in '<>&':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return Markup(text)
