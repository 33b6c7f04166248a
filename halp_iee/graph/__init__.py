"""Run the model once, label every tensor axis with the channels it carries, form groups."""

from __future__ import annotations

from halp_iee.graph.graph import ChannelGraph, trace
from halp_iee.graph.groups import AxisUnits
from halp_iee.graph.records import ChannelGroup, Keep, Op, Width

__all__ = ["AxisUnits", "ChannelGraph", "ChannelGroup", "Keep", "Op", "Width", "trace"]
