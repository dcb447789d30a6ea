"""Learned subspaces (Zhang et al. 2023): updates, outliers, recurrence, ablations, ways of training and transfer."""
