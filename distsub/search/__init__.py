"""What to try next: the grid of d, the policies, their verdicts, and the board that all searches share.

Pure: no clock, no files, no randomness, no torch, no Ray.
"""

from distsub.search.adaptive import Adaptive
from distsub.search.board import Board
from distsub.search.evidence import Evidence, Result, reaches, thresholds
from distsub.search.grid import PUBLISHED_RATIO, log_grid
from distsub.search.outcome import Finding, Outcome, Thresholds, Verdict
from distsub.search.policies import POLICIES, Bisection, Grid, Policy, make_policy
from distsub.search.recall import COLUMNS, Brief, brief, evidence, shares
from distsub.search.spec import FRESH, EtaChoice, Search

__all__ = [
    "COLUMNS",
    "FRESH",
    "POLICIES",
    "PUBLISHED_RATIO",
    "Adaptive",
    "Bisection",
    "Board",
    "Brief",
    "EtaChoice",
    "Evidence",
    "Finding",
    "Grid",
    "Outcome",
    "Policy",
    "Result",
    "Search",
    "Thresholds",
    "Verdict",
    "brief",
    "evidence",
    "log_grid",
    "make_policy",
    "reaches",
    "shares",
    "thresholds",
]
