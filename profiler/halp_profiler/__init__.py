"""Times layers on a device and writes latency tables. Runs alone: it needs numpy and one runtime."""
