"""What to try next: the grid of d, the policies, what they find, and the board that all searches share.

Pure: no clock, no files, no randomness, no torch, no Ray.
"""

from distsub.search.board import Board
from distsub.search.evidence import Evidence, Result, reaches, thresholds
from distsub.search.grid import PUBLISHED_RATIO, log_grid
from distsub.search.outcome import Finding, Outcome, Thresholds
from distsub.search.policies import POLICIES, Bisection, Grid, Policy, make_policy
from distsub.search.ranges import KEPT, Range
from distsub.search.recall import COLUMNS, Brief, brief, evidence, shares
from distsub.search.rule import Rule
from distsub.search.spec import Search
from distsub.search.spending import Limit

__all__ = [
    "COLUMNS",
    "KEPT",
    "POLICIES",
    "PUBLISHED_RATIO",
    "Bisection",
    "Board",
    "Brief",
    "Evidence",
    "Finding",
    "Grid",
    "Limit",
    "Outcome",
    "Policy",
    "Range",
    "Result",
    "Rule",
    "Search",
    "Thresholds",
    "brief",
    "evidence",
    "log_grid",
    "make_policy",
    "reaches",
    "shares",
    "thresholds",
]
