"""Files of weights and states: written, verified and read without executing anything; not when a run writes them."""
