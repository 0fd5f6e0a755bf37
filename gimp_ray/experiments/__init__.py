"""Many runs from one command: sweeps (hyperparameter search) and tables (methods or settings x folds x seeds).

A trial of a sweep and a cell of a table are the same thing, config keys laid over a base, computed in an ordinary run
folder. Tables: `spec`, `runs`, `grid`, `results`, `write`, `table`. Sweeps: `space`, `sweep`, `records`,
`trial`, `measure`, `tune`, `search`, `report`.
"""
