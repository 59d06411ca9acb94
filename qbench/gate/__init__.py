"""May this model ship? Policies, verdicts, baselines."""
