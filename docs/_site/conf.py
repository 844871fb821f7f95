"""Sphinx settings of the site that `make site` builds from the Markdown files that GitHub shows."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = 'mm2onnx'
copyright = 'the mm2onnx authors, Apache-2.0'
extensions = ['myst_parser', 'site_map', 'mixed_search']

# The repository is the source folder, so a relative link means the same here and on GitHub.
root_doc = 'README'
source_suffix = {'.md': 'markdown'}
include_patterns = [
    'README*.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'LICENSE', 'docs/**.md',
    'mmdeploy_ext/families/*/README.md', 'projects/*/README.md',
    'projects/driving/mm2onnx_driving/*/README.md', 'demo/checkpoints/README.md',
]  # fmt: skip
exclude_patterns = [
    '.*', 'data', 'work_dirs', 'build', 'dist', 'tests', 'tools', 'configs', '**/__pycache__',
    'dev/pages', 'docs/_site', 'docs/images', '*.egg-info',
]  # fmt: skip
myst_heading_anchors = 4
myst_enable_extensions = []
suppress_warnings = ['misc.highlighting_failure']

language = 'en'
html_theme = 'furo'
html_title = 'mm2onnx'
html_static_path = ['static']
html_favicon = 'static/favicon.svg'
html_css_files = ['site.css']
html_js_files = ['site.js']
html_search_language = 'mixed'
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {'navigation_with_keys': False}
templates_path = ['templates']
html_additional_pages = {'index': 'landing.html'}
pygments_style = 'friendly'
pygments_dark_style = 'github-dark'
