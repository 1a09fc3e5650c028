"""The workloads, and the peers that voltpy is compared with: `python -m bench WORKLOAD`."""
