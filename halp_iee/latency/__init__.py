"""A network's latency at any widths: from a table, summed over its kernels, calibrated against whole networks."""

from halp_iee.latency.cost import LayerCost
from halp_iee.latency.layers import Layer, layers_of, sweep_plan
from halp_iee.latency.model import Calibration, LatencyModel
from halp_iee.latency.table import LatencyTable

__all__ = ["Calibration", "LatencyModel", "LatencyTable", "Layer", "LayerCost", "layers_of", "sweep_plan"]
