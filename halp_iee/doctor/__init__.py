"""What a network's latency is made of and what pruning can do about it, before anyone trains."""

from halp_iee.doctor.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
