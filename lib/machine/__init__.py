"""The computer that a run is on: devices, processes, locks and progress bars; not what is computed there."""
