"""Tables of runs: rows (methods or settings) x folds x seeds, each cell an ordinary run folder.

`spec` says what a table is, `cells` which runs it needs, `state` which are there, `schedule` in which order the others
run, `grid` runs them on a Ray cluster (the only file here that imports Ray), `scores` and `pooled` make means,
intervals and differences over folds and seeds, `reading` fills the table from run folders, `writing`, `latex` and
`drawing` put it on disk, `make` joins them. Left out: searching settings (`gimp_ray.experiments`), and whatever happens
inside a run.
"""
