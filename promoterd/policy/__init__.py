"""What the administrator allows: YAML in, frozen models out, and which rule governs a path."""

from promoterd.policy.load import dump_policy, effective_policy, load_policy
from promoterd.policy.models import (
    ControlPolicy,
    CopyData,
    Expected,
    HeatPolicy,
    Limits,
    LogPolicy,
    MetricsPolicy,
    MountPolicy,
    Policy,
    Rule,
    WarmPolicy,
)

__all__ = [
    "ControlPolicy",
    "CopyData",
    "Expected",
    "HeatPolicy",
    "Limits",
    "LogPolicy",
    "MetricsPolicy",
    "MountPolicy",
    "Policy",
    "Rule",
    "WarmPolicy",
    "dump_policy",
    "effective_policy",
    "load_policy",
]
