"""Measured in the runtime: latency and accuracy. Counted: MACs, parameters, the cost of training."""
