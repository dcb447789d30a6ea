"""What to try next: the grid of d, the policies, what they find, and the queue that all searches share.

Pure: no clock, no files, no randomness, no torch, no Ray.
"""

from distsub.search.evidence import Evidence, share
from distsub.search.outcome import Finding, Outcome, Thresholds
from distsub.search.policies import POLICIES, Bisection, Grid, Policy, make_policy
from distsub.search.queue import TrialQueue
from distsub.search.ranges import KEPT, Range
from distsub.search.rule import Rule
from distsub.search.spec import PUBLISHED_RATIO, Search, log_grid
from distsub.search.spending import Limit
from distsub.search.thresholds import Result, reaches, thresholds
