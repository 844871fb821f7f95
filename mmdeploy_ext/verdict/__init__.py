"""Whether two sides are equal: comparison, matching, bars, and the verdict. Needs numpy only."""
