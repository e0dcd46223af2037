"""Rewards: how good an answer is, by rule or by rubric."""
