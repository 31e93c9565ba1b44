"""One archive's handler without TorchServe: run once, checked, watched, replayed."""
