"""What a GPU shows of halp-iee in a few minutes; started by ``tools/gpu_evidence.sh``."""
