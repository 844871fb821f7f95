"""Search in English and Chinese on one site: words are stemmed, Chinese is searched by pairs of characters.

Chinese has no spaces, and the generator's own splitter takes a whole clause for one word. Pairs need no
dictionary. The index has every pair; of a query, pairs that are on no page are left out: they lie across two
words that were asked for without a space.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sphinx.search.en import SearchEnglish

if TYPE_CHECKING:
    from sphinx.application import Sphinx

TOKEN = re.compile(r'[\u3400-\u9fff]+|[^\W\u3400-\u9fff]+')
SPLIT_IN_BROWSER = r"""
function splitQuery(query) {
  const index = typeof Search === "undefined" ? null : Search._index;
  const lists = index ? [index.terms, index.titleterms] : [];
  const known = (pair) => lists.some((terms) => Object.hasOwn(terms, pair));
  const terms = [];
  for (const run of query.match(/[\u3400-\u9fff]+|[\p{L}\p{N}_]+/gu) || []) {
    if (run.length === 1 || !run.match(/^[\u3400-\u9fff]/)) {
      terms.push(run);
      continue;
    }
    const pairs = Array.from({ length: run.length - 1 }, (_, i) => run.slice(i, i + 2));
    const found = pairs.filter(known);
    terms.push(...(found.length ? found : pairs));
  }
  return terms;
}
"""


def is_chinese(word: str) -> bool:
    """Return whether a word begins with a Chinese character."""
    return '\u3400' <= word[:1] <= '\u9fff'


class MixedSearch(SearchEnglish):
    """English with Chinese. `language_name` stays: the browser's stemmer is found by it."""

    lang = 'mixed'
    js_splitter_code = SPLIT_IN_BROWSER

    def split(self, text: str) -> list[str]:
        """Return words, and of Chinese every character and every pair."""
        terms = []
        for token in TOKEN.findall(text):
            if is_chinese(token):
                terms += [*token, *(token[index : index + 2] for index in range(len(token) - 1))]
            else:
                terms.append(token)
        return terms


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the language."""
    app.add_search_language(MixedSearch)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
